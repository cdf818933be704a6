"""Properties of MobileNetV2 alone; outputs of the reference are in test_golden.py."""

import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax
from bocb_jax.models.layers import make_divisible

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "mobilenetv2_035": (524_228, 1_677_128),
    "mobilenetv2_050": (815_780, 1_968_680),
    "mobilenetv2_075": (1_483_524, 2_636_424),
    "mobilenetv2": (2_351_972, 3_504_872),
    "mobilenetv2_110d": (3_363_620, 4_516_520),
    "mobilenetv2_120d": (4_678_244, 5_831_144),
    "mobilenetv2_140": (4_495_076, 6_108_776),
}


@pytest.mark.parametrize(("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=[]))
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)


def test_make_divisible_loses_at_most_a_tenth():
    assert [make_divisible(w) for w in (5.6, 8.4, 11.2, 22.4, 33.6, 44.8)] == [8, 8, 16, 24, 32, 48]
    for width in np.arange(8, 400, 0.7):
        assert make_divisible(width) % 8 == 0
        assert 0.9 * width <= make_divisible(width) <= width + 8


def test_feature_maps_of_a_size_that_strides_do_not_divide():
    shapes = filled.feature_shapes("mobilenetv2", 225)
    assert shapes == [(2, 57, 57, 24), (2, 29, 29, 32), (2, 15, 15, 96), (2, 8, 8, 320)]


def test_a_block_is_linear_at_its_end_and_added_where_shapes_agree():
    model, x = filled.build("mobilenetv2_mini"), images()
    model.eval()
    maps = run(model, x, method="features")
    assert maps[1].min() < 0  # no activation after the last norm
    shortcuts = [[block.shortcut for block in stage] for stage in model.blocks]
    assert shortcuts == [[True], [False, True], [False, True], [False, True]]


def test_initial_weights():
    model = bocb_jax.create_model(
        "mobilenetv2",
        num_classes=100,
        image_size=32,
        rngs=nnx.Rngs(0),
        stages=((1, 64, 1, 1),) * 2,
        taps=(0, 1),
    )
    block = model.blocks[1][0]
    depthwise, pointwise = block.conv_dw.kernel[...], block.conv_pw.kernel[...]
    assert float(depthwise.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)  # fan_out / groups
    assert float(pointwise.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert float(abs(model.classifier.kernel[...]).max()) == pytest.approx(0.1, rel=0.01)
    assert not model.classifier.bias[...].any()
