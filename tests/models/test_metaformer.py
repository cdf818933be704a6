"""Properties of the MetaFormers alone; outputs of the reference are in test_golden.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import build, images, run

import bocb_jax
from bocb_jax.errors import UserError
from bocb_jax.models.metaformer import Pooling, StarReLU
from bocb_jax.models.parameters import count_params, parameter_kinds

# Parameter counts at 100 and 1000 classes of the official code, from timm where it has the model.
# IdentityFormer has as many as PoolFormerV2: neither mixer has parameters.
COUNTS = {
    "identityformer_s12": (11_430_012, 11_891_712),
    "identityformer_s24": (20_879_764, 21_341_464),
    "identityformer_s36": (30_329_516, 30_791_216),
    "identityformer_m36": (55_385_068, 56_077_168),
    "identityformer_m48": (72_653_956, 73_346_056),
    "poolformerv2_s12": (11_430_012, 11_891_712),
    "poolformerv2_s24": (20_879_764, 21_341_464),
    "poolformerv2_s36": (30_329_516, 30_791_216),
    "poolformerv2_m36": (55_385_068, 56_077_168),
    "poolformerv2_m48": (72_653_956, 73_346_056),
    "convformer_s12": (17_683_092, 19_527_192),
    "convformer_s18": (24_930_348, 26_774_448),
    "convformer_s36": (38_168_052, 40_012_152),
    "convformer_m36": (54_977_140, 57_051_640),
    "convformer_b36": (97_116_916, 99_882_616),
    "attentionformer_s12": (17_356_924, 19_201_024),
    "caformer_s12": (17_394_564, 19_238_664),
    "caformer_s18": (24_497_556, 26_341_656),
    "caformer_s36": (37_453_002, 39_297_102),
    "caformer_m36": (54_130_378, 56_204_878),
    "caformer_b36": (95_987_914, 98_753_614),
}
MIXERS = ["identityformer", "poolformerv2", "convformer", "attentionformer", "caformer"]
TINY = {"depths": (1, 1), "widths": (16, 32)}


@pytest.mark.parametrize(
    ("name", "at_100", "at_1000"),
    filled.count_cases(COUNTS, fast=["identityformer_s12"]),
)
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)
    assert bocb_jax.model_card(name).num_params == at_1000


def test_initial_weights():
    model = bocb_jax.create_model(
        "convformer_mini",
        num_classes=10,
        image_size=32,
        rngs=nnx.Rngs(0),
        depths=(1, 1),
        widths=(32, 32),
        mixers=("conv", "attention"),
        scaled_shortcuts=1,
    )
    conv, attention = model.stages[0][0], model.stages[1][0]
    for weights in (
        model.downsample_layers[0].conv.kernel,
        model.downsample_layers[1].conv.kernel,
        conv.token_mixer.pwconv1.kernel,
        conv.token_mixer.dwconv.kernel,
        attention.token_mixer.qkv.kernel,
        attention.mlp.fc1.kernel,
        attention.mlp.fc2.kernel,
        model.head.fc1.kernel,
        model.head.fc2.kernel,
    ):
        error = 4 / np.sqrt(weights.size)
        assert abs(float(weights[...].mean())) < 0.02 * error
        assert float(weights[...].std()) == pytest.approx(0.02, rel=error)
    assert not model.downsample_layers[0].conv.bias[...].any()
    assert (attention.res_scale1.gamma[...] == 1).all()
    assert (attention.mlp.act.scale[...], attention.mlp.act.bias[...]) == (1, 0)


def test_star_relu_by_its_definition():
    act = StarReLU()
    act.scale[...], act.bias[...] = jnp.array([0.8]), jnp.array([-0.4])
    x = np.array([[-2.0, 0.0, 3.0]], np.float32)
    np.testing.assert_allclose(act(x), [[-0.4, -0.4, 6.8]], rtol=1e-6)


def test_pooling_of_a_constant_map_is_zero_at_its_border_too():
    np.testing.assert_allclose(Pooling()(jnp.ones((1, 4, 5, 2))), 0.0, atol=1e-6)
    x = jnp.zeros((1, 3, 3, 1)).at[0, 0, 0, 0].set(1.0)
    expected = np.zeros((3, 3))
    expected[0, 0], expected[0, 1], expected[1, 0], expected[1, 1] = 1 / 4 - 1, 1 / 6, 1 / 6, 1 / 9
    np.testing.assert_allclose(Pooling()(x)[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "axes"), [("map", (1, 2, 3)), ("channel", (3,))])
def test_block_norms_normalize_over_their_axes(norm, axes):
    block = build("identityformer_mini", block_norm=norm, **TINY).stages[0][0]
    x = np.float64(3 * images(2, 8).repeat(6, axis=3)[..., :16] + 1)
    block.norm1.scale[...] = jnp.ones(16)
    y = block.norm1(jnp.float32(x))
    exact = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-6)
    # A mean is rounded in units of the pixels, and the narrowest width divides it.
    width = x.std(axes, keepdims=True).min()
    np.testing.assert_allclose(y, exact, atol=64 * 2**-24 * np.abs(x).max() / width)
    assert block.norm1.bias is None


def test_receptive_field_of_each_mixer():
    x = images(1)
    changed = x.at[:, 0, 0].add(1.0)

    def reach(mixer):
        model = build(
            "convformer_mini", depths=(1,), widths=(16,), mixers=(mixer,), head_channels=16
        )
        [before], [after] = run(model, x, method="features"), run(model, changed, method="features")
        return (np.abs(after - before).max((0, 3)) > 1e-6).sum(axis=1).max()

    # The stem's first pixel sees the change; the mixer spreads it by its radius.
    assert {mixer: reach(mixer) for mixer in ("identity", "pool", "conv", "attention")} == {
        "identity": 1,
        "pool": 2,
        "conv": 4,
        "attention": 16,
    }


def test_only_the_last_stages_scale_their_shortcuts():
    kinds = parameter_kinds(build("caformer_mini"))
    blocks = [kinds["stages"][stage][0] for stage in range(4)]
    scaled = ["res_scale1" in block and "res_scale2" in block for block in blocks]
    assert scaled == [False, False, True, True]
    assert blocks[2]["res_scale1"]["gamma"] == "scale"
    assert blocks[2]["mlp"]["act"] == {"scale": "scale", "bias": "bias"}
    assert kinds["head"]["fc2"]["kernel"] == "head"
    assert kinds["head"]["fc1"]["kernel"] == "matrix"


@pytest.mark.parametrize("name", ["identityformer_mini", "poolformerv2_mini"])
def test_the_bocb_variant_has_channel_norms_and_an_mlp_head(name):
    official, bocb = build(name, **TINY), build(name, variant="bocb", **TINY)
    more = count_params(bocb) - count_params(official)
    hidden = 4 * 32
    assert more == (32 * hidden + hidden + 2 * hidden + hidden * 10 + 10) - (32 * 10 + 10)
    assert official.stages[0][0].norm1.reduction_axes == (-3, -2, -1)
    assert bocb.stages[0][0].norm1.reduction_axes == -1


@pytest.mark.parametrize("name", MIXERS)
def test_feature_maps(name):
    assert filled.feature_shapes(f"{name}_mini", 32) == [
        (2, 16, 16, 16),
        (2, 8, 8, 32),
        (2, 4, 4, 64),
        (2, 2, 2, 96),
    ]


def test_stochastic_depth_rises_linearly_over_all_stages():
    model = build("identityformer_mini", drop_path=0.5)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_stochastic_depth_draws_independently_per_sample_and_branch():
    model = build("convformer_mini", drop_path=0.5, **TINY)
    same = jnp.repeat(images(1), 64, axis=0)
    assert len(np.unique(run(model, same, dropout=0).round(3), axis=0)) == 4


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="'conv' or 'attention', not 'random'"):
        build("convformer_mini", mixers=("random",) * 4)
    with pytest.raises(UserError, match="'channel' or 'map', not 'batch'"):
        build("convformer_mini", block_norm="batch")
    with pytest.raises(UserError, match="'mlp' or 'linear', not 'none'"):
        build("convformer_mini", head="none")
