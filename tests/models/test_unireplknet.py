"""Properties of UniRepLKNet alone; outputs of the reference are in test_golden.py."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run
from helpers.golden_weights import fill, normal

from bocb_jax import torch_weights
from bocb_jax.errors import UserError
from bocb_jax.models.unireplknet import BRANCHES, Block, DilatedReparam, UniRepLKNetConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "unireplknet_a.npz"


@pytest.mark.slow
def test_parameter_counts_equal_the_references():
    assert filled.counts("unireplknet_t") == (31_116_520, 31_693_420)
    assert filled.counts("unireplknet_t", deploy=True) == (30_461_080, 31_037_980)


@pytest.mark.slow
def test_equals_the_reference_with_small_layer_scales():
    # With the other golden's weights the third stage reaches 1e7 in evaluation, and the reference
    # differs from itself by 2e-3 between one and two threads. Here the layer scales are a tenth.
    golden = np.load(GOLDEN)
    size, seed = int(golden["image_size"]), int(golden["seed"])
    weights = {}
    for name, shape in zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True):
        weights[name] = fill(name, json.loads(shape), seed)
        if name.endswith(".gamma") and weights[name].ndim == 1:
            weights[name] *= np.float32(0.1)
    model = filled.abstract("unireplknet_a", 100, 64)
    torch_weights.load_torch_weights(model, weights)
    x = jnp.asarray(normal("input", (4, 3, size, size), seed).transpose(0, 2, 3, 1))
    model.eval()
    for net in (model, model.fuse()):
        error = np.abs(run(net, x) - golden["logits"]).max()
        assert error < 1e-4 * golden["logits"].std()


@pytest.mark.parametrize("kernel_size", sorted(BRANCHES))
def test_the_merged_kernel_equals_all_branches(kernel_size):
    block = DilatedReparam(4, kernel_size, dtype=None, rngs=nnx.Rngs(0))
    block.eval()
    random = np.random.default_rng(0)
    for _, norm in nnx.iter_modules(block):
        if hasattr(norm, "affine"):
            norm.scale[...], norm.bias[...] = random.standard_normal((2, 4)).astype(np.float32)
            norm.mean[...], norm.var[...] = random.uniform(0.5, 2, (2, 4)).astype(np.float32)
    x = jax.random.normal(jax.random.key(0), (1, 24, 24, 4))
    kernel, bias = block.merged()
    merged = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    merged += bias[None, None, None]
    np.testing.assert_allclose(merged, block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_fused_model_gives_the_same_logits():
    model, x = filled.build("unireplknet_mini"), images()
    model.eval()
    before = run(model, x)
    fused = model.fuse()
    np.testing.assert_allclose(run(fused, x), before, rtol=0, atol=1e-4 * before.std())
    np.testing.assert_array_equal(run(model, x), before)  # the model itself is unchanged
    assert not jax.tree.leaves(nnx.state(fused, nnx.BatchStat))


@pytest.mark.slow
def test_fusing_twice_is_fusing_once():
    fused = filled.build("unireplknet_mini").fuse()
    weights, again = (torch_weights.to_torch_state_dict(m) for m in (fused, fused.fuse()))
    assert weights.keys() == again.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(again[name], weight)


@pytest.mark.slow
def test_fused_weights_fit_a_model_built_with_deploy():
    fused = filled.build("unireplknet_mini").fuse()
    weights = torch_weights.to_torch_state_dict(fused)
    assert "stages.1.0.dwconv.lk_origin.bias" in weights
    deployed = filled.abstract("unireplknet_mini", 10, 32, deploy=True)
    torch_weights.load_torch_weights(deployed, weights)
    np.testing.assert_array_equal(run(deployed, images()), run(fused, images()))


def test_positions_of_the_large_kernels():
    stages = filled.abstract("unireplknet_a", 10, 32).stages
    built = [[hasattr(block.dwconv, "merged") for block in stage] for stage in stages]
    assert built == [[False] * 2, [True] * 2, [True] * 6, [True] * 2]
    tiny = UniRepLKNetConfig().kernel_sizes()
    assert tiny == [[3] * 3, [13] * 3, [13, 3] * 9, [13] * 3]
    small = UniRepLKNetConfig(depths=(3, 3, 27, 3), period=3).kernel_sizes()
    assert small == [[3] * 3, [13] * 3, [13, 3, 3] * 9, [13] * 3]


def test_a_large_kernel_without_branches_is_refused():
    with pytest.raises(UserError, match="large_kernel is one of 7, 9, 11, 13, 15, 17, not 8"):
        filled.abstract("unireplknet_mini", 10, 32, large_kernel=8)


def test_feature_maps():
    shapes = [(2, 56, 56, 80), (2, 28, 28, 160), (2, 14, 14, 320), (2, 7, 7, 640)]
    assert filled.feature_shapes("unireplknet_t", 224, drop_path=0.0, depths=(1, 1, 1, 1)) == shapes


def test_a_channel_that_is_zero_everywhere_has_a_finite_gradient():
    norm = filled.build("unireplknet_mini").stages[0][0].grn
    gradient = jax.grad(lambda x: norm(x).sum())(jnp.zeros((1, 2, 2, 64)))
    assert np.isfinite(gradient).all()


def test_initial_weights():
    block = Block(96, 7, UniRepLKNetConfig(), 0.0, dtype=None, rngs=nnx.Rngs(0))
    for kernel in (
        block.dwconv.lk_origin.kernel,
        block.pwconv1.kernel,
        block.pwconv2.kernel,
        block.se.down.kernel,
    ):
        assert float(kernel[...].std()) == pytest.approx(0.02, rel=0.05)
        assert abs(float(kernel[...].mean())) < 2e-3
    assert not block.grn.gamma[...].any()
    assert not block.grn.beta[...].any()
    np.testing.assert_allclose(block.gamma[...], 1e-6, rtol=1e-6)
