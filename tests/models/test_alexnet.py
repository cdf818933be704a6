"""Properties of AlexNet alone; outputs of the reference are in test_golden.py."""

import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax
from bocb_jax.errors import UserError


def test_images_too_small_for_three_poolings_are_refused():
    with pytest.raises(UserError, match=r"62 pixels.*63 pixels and more; alexnet_mini"):
        filled.abstract("alexnet", 10, 62)
    assert filled.feature_shapes("alexnet", 63) == [(2, 7, 7, 64), (2, 3, 3, 192), (2, 1, 1, 256)]


def test_feature_maps():
    shapes = [(2, 27, 27, 64), (2, 13, 13, 192), (2, 6, 6, 256)]
    assert filled.feature_shapes("alexnet", 224) == shapes


def test_the_last_map_is_pooled_to_the_grid_of_the_dense_layers():
    model = filled.build("alexnet_mini")
    model.eval()
    assert run(model, images(size=32)).shape == (2, 10)
    assert run(model, images(size=24)).shape == (2, 10)  # 2x2 stretched to the grid of 3x3
    assert run(model, images(size=50)).shape == (2, 10)  # 5x5 averaged to it


def test_dropout_acts_in_training_only():
    model, x = filled.build("alexnet_mini"), images()
    dropped = [run(model, x, dropout=key) for key in (0, 1)]
    assert np.abs(dropped[0] - dropped[1]).max() > 0.1
    model.eval()
    np.testing.assert_array_equal(run(model, x), run(model, x))


@pytest.mark.parametrize("variant", ["official", "bocb"])
def test_initial_weights(variant):
    model = bocb_jax.create_model(
        "alexnet_mini",
        num_classes=10,
        image_size=32,
        rngs=nnx.Rngs(0),
        variant=variant,
        widths=(16, 48, 48, 48, 48),
        hidden=432,
    )
    for layer, fan_in in ((model.conv2, 16 * 25), (model.conv4, 48 * 9), (model.fc6, 48 * 9)):
        kernel, bias = layer.kernel[...], layer.bias[...]
        bound = fan_in**-0.5
        if variant == "official":
            assert float(abs(kernel).max()) == pytest.approx(bound, rel=0.01)
            assert float(kernel.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
            assert 0 < float(abs(bias).max()) <= bound
        else:
            assert float(kernel.std()) == pytest.approx(2**0.5 * bound, rel=0.02)
            assert not bias.any()
        assert abs(float(kernel.mean())) < 0.03 * bound
