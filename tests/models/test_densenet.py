"""Properties of DenseNet alone; outputs of the reference are in test_golden.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

import bocb_jax

# Parameter counts at 100 and 1000 classes, from timm.
COUNTS = {
    "densenet121": (7_056_356, 7_978_856),
    "densenet161": (26_692_900, 28_681_000),
    "densenet169": (12_650_980, 14_149_480),
    "densenet201": (18_285_028, 20_013_928),
}


@pytest.mark.parametrize(("name", "at_100", "at_1000"), filled.count_cases(COUNTS, fast=[]))
def test_parameter_counts_equal_the_references(name, at_100, at_1000):
    assert filled.counts(name) == (at_100, at_1000)


def test_stems():
    imagenet = filled.feature_shapes("densenet_mini", 32, stem="imagenet")
    assert [shape[1] for shape in imagenet] == [8, 4, 2, 1]
    cifar = filled.feature_shapes("densenet_mini", 32)
    assert cifar == [(2, 32, 32, 32), (2, 16, 16, 40), (2, 8, 8, 52), (2, 4, 4, 50)]
    # The stem for 32 pixels is the convolution alone: no norm.
    fewer = 3 * 16 * (7**2 - 3**2) + 2 * 16
    counts = [filled.counts("densenet_mini", 32, stem=stem)[0] for stem in ("imagenet", "cifar")]
    assert counts[0] - counts[1] == fewer


def test_every_dense_layer_keeps_the_channels_before_it():
    model, x = filled.build("densenet_mini"), images()
    model.eval()
    first = run(model, x, method="features")[0]
    stem = np.asarray(model.conv0(x))
    np.testing.assert_allclose(first[..., :16], stem, atol=1e-5)
    layer = model.denseblock1["denselayer1"]
    np.testing.assert_allclose(first[..., 16:24], layer(jnp.asarray(stem)), atol=1e-5)


def test_dropout_acts_on_the_channels_that_a_layer_adds():
    model, x = filled.build("densenet_mini", dropout=0.5), images()
    first = run(model, x, dropout=0, method="features")[0]
    assert np.mean(first[..., :16] == 0) < 0.01
    assert np.mean(first[..., 16:] == 0) == pytest.approx(0.5, abs=0.02)


def test_initial_weights():
    model = bocb_jax.create_model(
        "densenet121", num_classes=100, image_size=32, rngs=nnx.Rngs(0), depths=(1, 1)
    )
    layer = model.denseblock2["denselayer1"]
    for kernel in (layer.conv1.kernel[...], layer.conv2.kernel[...], model.transition1.conv.kernel):
        fan_in = np.prod(kernel.shape[:-1])
        assert float(kernel.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
        assert abs(float(kernel.mean())) < 0.03 * (2 / fan_in) ** 0.5
    head = model.classifier
    assert float(abs(head.kernel[...]).max()) == pytest.approx(head.in_features**-0.5, rel=0.01)
    assert not head.bias[...].any()
