"""Properties of ConvNeXt V1 and V2 alone; outputs of the reference are in test_golden.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax
from bocb_jax.errors import UserError
from bocb_jax.models.convnext import GlobalResponseNorm
from bocb_jax.models.parameters import count_params, parameter_kinds

build = functools.partial(filled.build, "convnext_mini")
build_v2 = functools.partial(filled.build, "convnextv2_mini")
TINY = {"depths": (1,), "widths": (16,)}

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "convnext_t": (27_897_028, 28_589_128),
    "convnext_s": (49_531_588, 50_223_688),
    "convnext_b": (87_668_964, 88_591_464),
    "convnext_l": (196_384_036, 197_767_336),
    "convnext_xl": (348_352_868, 350_196_968),
    "convnextv2_atto": (3_419_500, 3_708_400),
    "convnextv2_femto": (4_886_740, 5_233_240),
    "convnextv2_pico": (8_604_580, 9_066_280),
    "convnextv2_nano": (15_046_900, 15_623_800),
    "convnextv2_t": (27_943_396, 28_635_496),
    "convnextv2_b": (87_795_300, 88_717_800),
    "convnextv2_l": (196_573_540, 197_956_840),
    "convnextv2_h": (657_754_340, 660_289_640),
}


@pytest.mark.parametrize(
    ("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=["convnextv2_atto"])
)
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)
    assert bocb_jax.model_card(name).num_params == at_1000


def test_the_cifar_stem_is_smaller():
    assert count_params(filled.abstract("convnext_t", 100, 32)) == 27_895_012
    assert count_params(filled.abstract("convnextv2_t", 100, 32)) == 27_941_380


def test_initial_weights_have_the_papers_distribution():
    model = bocb_jax.create_model(
        "convnext_mini",
        num_classes=10,
        image_size=64,
        rngs=nnx.Rngs(0),
        depths=(1, 1),
        widths=(32, 32),
    )
    block = model.stages[1].blocks[0]
    for weights in (
        model.stem[0].kernel,
        model.stages[1].downsample[1].kernel,
        block.conv_dw.kernel,
        block.mlp.fc1.kernel,
        block.mlp.fc2.kernel,
        model.head.fc.kernel,
    ):
        error = 4 / np.sqrt(weights.size)
        assert abs(float(weights[...].mean())) < 0.02 * error
        assert float(weights[...].std()) == pytest.approx(0.02, rel=error)
    for bias in (model.stem[0].bias, block.conv_dw.bias, block.mlp.fc2.bias, model.head.fc.bias):
        assert not bias[...].any()
    np.testing.assert_array_equal(block.gamma[...], np.float32(1e-6))


@pytest.mark.parametrize(
    ("size", "stem", "sides"),
    [
        (32, "auto", (32, 16, 8, 4)),
        (32, "imagenet", (8, 4, 2, 1)),
        (64, "auto", (16, 8, 4, 2)),
        (64, "cifar", (64, 32, 16, 8)),
    ],
)
def test_feature_maps(size, stem, sides):
    assert filled.feature_shapes("convnext_mini", size, stem=stem) == [
        (2, side, side, width) for side, width in zip(sides, (16, 32, 64, 128), strict=True)
    ]


def test_an_unknown_stem_is_refused():
    with pytest.raises(UserError, match="'auto', 'imagenet' or 'cifar', not 'tiny'"):
        build(stem="tiny")


def test_stochastic_depth_rises_linearly_over_all_stages():
    model = build(drop_path=0.5)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_stochastic_depth_draws_independently_per_sample_and_block():
    model = build(depths=(1, 2), widths=(16, 32), drop_path=0.5)
    same = jnp.repeat(images(1, 8), 64, axis=0)
    # Two blocks have a rate above 0; each is kept or dropped.
    assert len(np.unique(run(model, same, dropout=0).round(3), axis=0)) == 4
    model.eval()
    assert len(np.unique(run(model, same).round(3), axis=0)) == 1


def test_layer_scale_of_zero_leaves_the_shortcut_alone():
    model = build(depths=(1, 1), widths=(16, 32))
    x = images()
    for stage in model.stages:
        stage.blocks[0].gamma[...] = jnp.zeros_like(stage.blocks[0].gamma)
    expected = run(model, x)
    for stage in model.stages:
        stage.blocks = nnx.List([])
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


def test_response_norm_starts_as_the_identity_and_matches_its_definition():
    norm = GlobalResponseNorm(5)
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(norm(x), x)
    norm.scale[...], norm.bias[...] = jnp.arange(5.0), jnp.full(5, 0.5)
    for image, y in zip(x, np.asarray(norm(x)), strict=True):
        norms = np.array([np.linalg.norm(image[..., c]) for c in range(5)])
        gain = np.arange(5) * norms / (norms.mean() + 1e-6)
        np.testing.assert_allclose(y, image + gain * image + 0.5, rtol=1e-5)


def test_response_norm_of_a_dead_channel_has_a_finite_gradient():
    norm = GlobalResponseNorm(3)
    norm.scale[...] = jnp.ones(3)
    x = images(1, 4).at[..., 1].set(0.0)
    gradient = jax.grad(lambda x: (norm(x) ** 2).sum())(x)
    assert np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda x: (norm(x) ** 2).sum())(jnp.zeros_like(x))).all()


def test_v2_has_response_norm_instead_of_layer_scale():
    v1, v2 = build(), build_v2()
    assert v1.stages[0].blocks[0].gamma is not None
    assert v2.stages[0].blocks[0].gamma is None
    kinds = parameter_kinds(v2)["stages"][0]["blocks"][0]
    assert kinds["mlp"]["grn"] == {"scale": "scale", "bias": "bias"}
    assert kinds["conv_dw"]["kernel"] == "depthwise"
    assert parameter_kinds(v1)["stages"][0]["blocks"][0]["gamma"] == "scale"


def test_an_mlp_of_convolutions_equals_one_of_dense_layers():
    dense, conv = build_v2(**TINY), build_v2(conv_mlp=True, **TINY)
    state = dict(nnx.to_flat_state(nnx.state(dense)))
    nnx.update(
        conv,
        nnx.map_state(
            lambda path, v: v.replace(state[path][...].reshape(v.shape)), nnx.state(conv)
        ),
    )
    x = images()
    np.testing.assert_allclose(run(conv, x), run(dense, x), atol=1e-4)


def test_dropout_before_the_classifier():
    x, model = images(), build(dropout=0.5, **TINY)
    expected = run(build(**TINY), x)
    assert np.abs(run(model, x, dropout=1) - expected).max() > 0.01
    model.eval()
    np.testing.assert_array_equal(run(model, x), expected)
