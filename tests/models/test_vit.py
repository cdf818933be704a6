"""Properties of the Vision Transformers alone; outputs of the reference are in test_golden.py."""

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
from bocb_jax.models.parameters import count_params, parameter_kinds

build = functools.partial(filled.build, "vit_mini")

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "vit_ti": (5_543_716, 5_717_416),
    "vit_s": (21_704_164, 22_050_664),
    "vit_b": (85_875_556, 86_567_656),
    "vit_l": (303_404_132, 304_326_632),
    "vit_h": (630_892_900, 632_045_800),
}


@pytest.mark.parametrize(("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=["vit_ti"]))
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)
    assert bocb_jax.model_card(name).num_params == at_1000


def test_deit_is_an_alias():
    assert bocb_jax.model_card("deit_s") == bocb_jax.model_card("vit_s")


def test_initial_weights_have_deits_distribution():
    model = bocb_jax.create_model(
        "vit_mini", num_classes=10, image_size=32, rngs=nnx.Rngs(0), width=128, depth=1
    )
    [block] = model.blocks
    for weights in (
        block.attn.qkv.kernel,
        block.attn.proj.kernel,
        block.mlp.fc1.kernel,
        block.mlp.fc2.kernel,
        model.head.kernel,
        model.pos_embed,
        model.cls_token,
    ):
        error = 4 / np.sqrt(weights.size)  # four standard errors, of the mean and of the spread
        assert abs(float(weights[...].mean())) < 0.02 * error
        assert float(weights[...].std()) == pytest.approx(0.02, rel=error)
    patch = model.patch_embed.proj
    bound = (3 * 4 * 4) ** -0.5
    assert float(patch.kernel[...].std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    for values in (patch.kernel[...], patch.bias[...]):
        assert 0.8 * bound < float(jnp.abs(values).max()) <= bound
    for bias in (block.attn.qkv.bias, block.attn.proj.bias, block.mlp.fc1.bias, model.head.bias):
        assert not bias[...].any()


def test_stochastic_depth_rises_linearly():
    rates = [block.drop_path.rate for block in build(drop_path=0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_block_that_is_always_dropped_is_the_identity():
    model, shallower = build(depth=2, drop_path=1.0), build(depth=1)
    model.blocks[0] = shallower.blocks[0]
    for name in ("patch_embed", "cls_token", "pos_embed", "norm", "head"):
        setattr(model, name, getattr(shallower, name))
    x = images()
    np.testing.assert_allclose(run(model, x, dropout=1), run(shallower, x), atol=1e-5)


def test_stochastic_depth_draws_independently_per_sample_and_branch():
    model = build(depth=2, drop_path=0.5)
    same = jnp.repeat(images(1), 64, axis=0)
    # The last block's two branches are each kept or dropped: four nets, if draws are independent.
    assert len(np.unique(run(model, same, dropout=0).round(3), axis=0)) == 4
    model.eval()
    assert len(np.unique(run(model, same).round(3), axis=0)) == 1


def test_random_layers_without_rngs_say_what_to_do():
    with pytest.raises(UserError, match=r"rngs=nnx\.Rngs\(dropout="):
        run(build(drop_path=0.5), images())


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_dropout_acts_in_training_only(rates):
    x, model = images(), build(depth=1, **rates)
    expected = run(build(depth=1), x)
    assert np.abs(run(model, x, dropout=1) - expected).max() > 0.01
    model.eval()
    np.testing.assert_array_equal(run(model, x), expected)


def test_layer_scale_is_a_gain_per_branch():
    model = build(layer_scale=0.1)
    plain = build()
    assert count_params(model) == count_params(plain) + 4 * 2 * 64
    assert parameter_kinds(model)["blocks"][0]["ls1"]["gamma"] == "scale"
    for block in model.blocks:
        block.ls1.gamma[...] = block.ls2.gamma[...] = jnp.zeros(64)
    without_blocks = build(depth=0)
    for name in ("patch_embed", "cls_token", "pos_embed", "norm", "head"):
        setattr(without_blocks, name, getattr(model, name))
    x = images()
    np.testing.assert_allclose(run(model, x), run(without_blocks, x), atol=1e-6)


def test_patch_size_sets_the_grid_and_the_position_embedding():
    model = build(patch_size=8)
    assert model.pos_embed.shape == (1, 1 + 16, 64)
    [features] = run(model, images(), method="features")
    assert features.shape == (2, 4, 4, 64)


def test_other_image_sizes_resize_the_position_embedding():
    model = build()
    [features] = run(model, images(size=48), method="features")
    assert features.shape == (2, 12, 12, 64)
    # One embedding for the whole grid stays one when resized: a flat image's tokens are all equal.
    grid = jnp.full((1, 64, 64), 0.3)
    model.pos_embed[...] = jnp.concatenate([model.pos_embed[:, :1], grid], axis=1)
    [features] = run(model, jnp.ones((1, 48, 48, 3)), method="features")
    np.testing.assert_allclose(
        features, np.broadcast_to(features[:, :1, :1], features.shape), atol=1e-4
    )


def test_images_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(UserError, match="patch_size divides"):
        build(image_size=30)
    with pytest.raises(UserError, match="33x32"):
        build()(jnp.zeros((1, 33, 32, 3)))


def test_tokens_and_embeddings_declare_their_kind():
    kinds = parameter_kinds(build())
    assert kinds["cls_token"] == "token"
    assert kinds["pos_embed"] == "embedding"
    assert kinds["head"]["kernel"] == "head"
    assert kinds["patch_embed"]["proj"]["kernel"] == "conv"


def test_softmax_is_in_float32_under_bfloat16():
    graph, state = nnx.split(build(dtype=jnp.bfloat16))
    trace = str(jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, images()))
    exponentials = [line for line in trace.splitlines() if "= exp " in line]
    assert len(exponentials) == 4
    assert all(":f32[" in line for line in exponentials)
