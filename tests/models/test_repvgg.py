"""Properties of RepVGG alone; outputs of the reference are in test_golden.py."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

from bocb_jax import torch_weights
from bocb_jax.models.repvgg import Block

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "repvgg_a0": (7_956_068, 9_108_968),
    "repvgg_a1": (12_939_364, 14_092_264),
    "repvgg_a2": (26_942_500, 28_210_600),
    "repvgg_b0": (14_665_060, 15_817_960),
    "repvgg_b1": (55_570_916, 57_415_016),
    "repvgg_b1g4": (38_121_956, 39_966_056),
    "repvgg_b2": (86_717_476, 89_022_376),
    "repvgg_b2g4": (59_453_476, 61_758_376),
    "repvgg_b3": (120_780_388, 123_085_288),
    "repvgg_b3g4": (81_520_228, 83_825_128),
}


@pytest.mark.parametrize(("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=[]))
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_fused_model_gives_the_same_logits(groups):
    model, x = filled.build("repvgg_mini", groups=groups), images()
    model.eval()
    before = run(model, x)
    fused = model.fuse()
    np.testing.assert_allclose(run(fused, x), before, rtol=0, atol=1e-5 * before.std())
    np.testing.assert_array_equal(run(model, x), before)  # the model itself is unchanged
    assert not jax.tree.leaves(nnx.state(fused, nnx.BatchStat))


def test_fusing_twice_is_fusing_once():
    fused = filled.build("repvgg_mini").fuse()
    weights, again = (torch_weights.to_torch_state_dict(m) for m in (fused, fused.fuse()))
    assert weights.keys() == again.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(again[name], weight)


def test_fused_weights_fit_a_model_built_with_deploy():
    fused = filled.build("repvgg_mini").fuse()
    weights = torch_weights.to_torch_state_dict(fused)
    assert "stages.0.0.reparam_conv.weight" in weights
    deployed = filled.abstract("repvgg_mini", 10, 32, deploy=True)
    torch_weights.load_torch_weights(deployed, weights)
    np.testing.assert_array_equal(run(deployed, images()), run(fused, images()))


def test_parameter_count_after_fusing():
    assert filled.counts("repvgg_a1", deploy=True)[1] == 12_789_864  # 12.79 M


def test_the_identity_branch_exists_where_shapes_agree():
    model = filled.abstract("repvgg_a1", 10, 32)
    assert [block.identity is not None for block in model.stages[1]] == [False, True, True, True]
    assert model.stem.identity is None


def test_every_second_block_of_a_stage_is_grouped():
    model = filled.abstract("repvgg_b1g4", 10, 32)
    assert [block.conv_kxk.conv.groups for block in model.stages[0]] == [1, 4, 1, 4]


def test_feature_maps():
    shapes = [(2, 56, 56, 64), (2, 28, 28, 128), (2, 14, 14, 256), (2, 7, 7, 1280)]
    assert filled.feature_shapes("repvgg_a1", 224) == shapes


@pytest.mark.parametrize("groups", [1, 4])
def test_initial_weights(groups):
    block = Block(64, 64, strides=1, groups=groups, dtype=None, rngs=nnx.Rngs(0))
    for conv, area in ((block.conv_kxk.conv, 9), (block.conv_1x1.conv, 1)):
        expected = (2 * groups / (area * 64)) ** 0.5  # He's, by fan_out / groups
        assert float(conv.kernel[...].std()) == pytest.approx(expected, rel=0.05)
    assert (block.identity.scale[...] == 1).all()
