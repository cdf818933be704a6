"""Properties of MLP-Mixer alone; outputs of the reference are in test_golden.py."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax
from bocb_jax.errors import UserError

build = functools.partial(filled.build, "mixer_mini")

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "mixer_s": (18_066_564, 18_528_264),
    "mixer_s32": (18_642_924, 19_104_624),
    "mixer_b": (59_188_372, 59_880_472),
    "mixer_b32": (59_601_328, 60_293_428),
    "mixer_l": (207_273_668, 208_196_168),
    "mixer_l32": (206_016_764, 206_939_264),
}


@pytest.mark.parametrize(
    ("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=["mixer_s32"])
)
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)
    assert bocb_jax.model_card(name).num_params == at_1000


def test_initial_weights():
    model = bocb_jax.create_model(
        "mixer_mini", num_classes=10, image_size=32, rngs=nnx.Rngs(0), depth=1
    )
    [block] = model.blocks
    # Kernels of the MLPs are Xavier uniform; the patches' are LeCun normal.
    for weights, spread in (
        (block.mlp_tokens.fc1.kernel, (2 / (64 + 32)) ** 0.5),
        (block.mlp_tokens.fc2.kernel, (2 / (32 + 64)) ** 0.5),
        (block.mlp_channels.fc1.kernel, (2 / (64 + 256)) ** 0.5),
        (block.mlp_channels.fc2.kernel, (2 / (256 + 64)) ** 0.5),
        (block.mlp_channels.fc1.bias, 1e-6),
        (model.stem.proj.kernel, (1 / (3 * 4 * 4)) ** 0.5),
        (model.head.kernel, 0.02),
    ):
        error = 4 / np.sqrt(weights.size)
        assert abs(float(weights[...].mean())) < spread * error
        assert float(weights[...].std()) == pytest.approx(spread, rel=error)
    assert not model.stem.proj.bias[...].any()
    assert not model.head.bias[...].any()


def test_the_token_mlp_mixes_patches_and_the_channel_mlp_does_not():
    model = build(depth=1)
    x = images(1)
    changed = x.at[:, :4, :4].add(1.0)  # the first patch alone
    tokens = [block.mlp_tokens for block in model.blocks]
    [before], [after] = run(model, x, method="features"), run(model, changed, method="features")
    moved = np.abs(after - before).max((0, 3)) > 1e-6
    assert moved.all()
    for mlp in tokens:
        mlp.fc2.kernel[...] = jnp.zeros_like(mlp.fc2.kernel)
    [before], [after] = run(model, x, method="features"), run(model, changed, method="features")
    moved = np.abs(after - before).max((0, 3)) > 1e-6
    assert moved[0, 0]
    assert moved.sum() == 1


def test_stochastic_depth_rises_linearly():
    rates = [block.drop_path.rate for block in build(drop_path=0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_stochastic_depth_draws_independently_per_sample_and_branch():
    model = build(depth=2, drop_path=0.5)
    same = jnp.repeat(images(1), 64, axis=0)
    assert len(np.unique(run(model, same, dropout=0).round(3), axis=0)) == 4


def test_the_bocb_variant_has_dropout_and_another_epsilon():
    official, bocb = build(), build(variant="bocb")
    assert official.blocks[0].mlp_tokens.drop.rate == 0.0
    assert bocb.blocks[0].mlp_tokens.drop.rate == bocb.blocks[0].mlp_channels.drop.rate == 0.1
    assert (official.norm.epsilon, bocb.norm.epsilon) == (1e-6, 1e-5)
    assert bocb.blocks[0].norm1.epsilon == 1e-5


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="patch_size divides"):
        build(image_size=30)
    with pytest.raises(UserError, match=r"created for images of 32x32 pixels and got 64x64"):
        build()(images(size=64))


def test_features_is_one_map():
    assert filled.feature_shapes("mixer_mini", 32) == [(2, 8, 8, 64)]
