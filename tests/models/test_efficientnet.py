"""Properties of EfficientNet alone; outputs of the reference are in test_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax
from bocb_jax.models import layers

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "efficientnet_b0": (4_135_648, 5_288_548),
    "efficientnet_b1": (6_641_284, 7_794_184),
    "efficientnet_b2": (7_841_894, 9_109_994),
    "efficientnet_b3": (10_849_932, 12_233_232),
    "efficientnet_b4": (17_727_916, 19_341_616),
    "efficientnet_b5": (28_545_684, 30_389_784),
    "efficientnet_b6": (40_966_204, 43_040_704),
    "efficientnet_b7": (64_043_060, 66_347_960),
    "efficientnet_b8": (84_877_842, 87_413_142),
    "efficientnet_l2": (475_354_808, 480_309_308),
}


@pytest.mark.parametrize(("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=[]))
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)


def test_feature_maps():
    shapes = [(2, 56, 56, 24), (2, 28, 28, 40), (2, 14, 14, 112), (2, 7, 7, 320)]
    assert filled.feature_shapes("efficientnet_b0", 224, drop_path=0.0) == shapes


def test_bocb_pads_as_tensorflow_and_has_a_larger_epsilon():
    official, bocb = (
        filled.build("efficientnet_mini", variant=variant, drop_path=0.0, dropout=0.0)
        for variant in ("official", "bocb")
    )
    norms = [m for _, m in nnx.iter_modules(bocb) if isinstance(m, layers.BatchNorm)]
    assert {norm.epsilon for norm in norms} == {1e-3}
    # A 3x3 at stride 2 on an even side: TensorFlow starts at the first pixel, with no zeros before.
    conv = bocb.blocks[1][0].conv_dw
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, conv.kernel.shape[-1]))
    corner = (x[0, :3, :3] * conv.kernel[:, :, 0]).sum((0, 1))
    np.testing.assert_allclose(conv(x)[0, 0, 0], corner, rtol=1e-5, atol=1e-5)
    assert np.abs(run(official, images()) - run(bocb, images())).max() > 1e-2


def test_bocb_has_no_dropout():
    model = filled.build("efficientnet_mini", variant="bocb")
    np.testing.assert_array_equal(run(model, images()), run(model, images()))


def test_stochastic_depth_ends_one_step_short_as_in_timm():
    model = filled.abstract("efficientnet_b0", 10, 32, drop_path=0.16)
    rates = [block.drop_path.rate for stage in model.blocks for block in stage]
    assert rates == pytest.approx(0.16 * np.arange(16) / 16)


def test_squeeze_and_excite_is_a_gate_per_channel():
    block = filled.build("efficientnet_mini").blocks[1][0].se
    x = jnp.ones((2, 3, 3, block.conv_reduce.kernel.shape[2]))
    gate = np.asarray(block(x))
    assert (gate == gate[:, :1, :1]).all()
    assert ((gate > 0) & (gate < 1)).all()


def two_stages(**settings):
    return bocb_jax.create_model(
        "efficientnet_b0",
        num_classes=100,
        image_size=32,
        rngs=nnx.Rngs(0),
        stages=((5, 64, 1, 1, 1), (5, 64, 1, 6, 1)),
        taps=(0, 1),
        **settings,
    )


def test_initial_weights():
    model = two_stages()
    block = model.blocks[1][0]
    depthwise, pointwise = block.conv_dw.kernel[...], block.conv_pwl.kernel[...]
    assert float(depthwise.std()) == pytest.approx((2 / 25) ** 0.5, rel=0.05)  # fan_out / groups
    assert float(pointwise.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert float(abs(model.classifier.kernel[...]).max()) == pytest.approx(0.1, rel=0.01)


def test_bocb_has_pytorchs_default_initialization():
    model = two_stages(variant="bocb")
    block = model.blocks[1][0]
    for parameter, fan_in in (
        (block.conv_dw.kernel, 25),
        (block.conv_pwl.kernel, 384),
        (block.se.conv_reduce.kernel, 384),
        (block.se.conv_expand.bias, 16),
        (model.conv_stem.kernel, 27),
    ):
        bound = fan_in**-0.5
        assert float(abs(parameter[...]).max()) == pytest.approx(bound, rel=0.05)
        assert float(parameter[...].std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    assert float(model.classifier.kernel[...].std()) == pytest.approx(0.01, rel=0.05)
