import pytest
from flax import nnx

import bocb_jax
from bocb_jax.models.macs import count_macs

# Published, in units of 10^9 at 224 pixels: torchvision's weights tables (which count
# multiply-adds) for all but MogaNet, whose authors give 5.0.
PUBLISHED = {
    "resnet50": 4.09,
    "vgg13_bn": 11.31,
    "mobilenetv2": 0.30,
    "efficientnet_b0": 0.39,
    "swin_t": 4.49,
    "convnext_t": 4.46,
    "moganet_s": 5.0,
}
LARGE = ("moganet_s", "swin_t", "convnext_t")  # which take longest to trace


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in PUBLISHED]
)
def test_macs_are_those_published(name):
    model = nnx.eval_shape(lambda: bocb_jax.create_model(name, rngs=nnx.Rngs(0)))
    assert count_macs(model, 224) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.03)


@pytest.mark.parametrize("name", bocb_jax.list_models("*_mini"))
def test_minis_are_small(name):
    model = nnx.eval_shape(
        lambda: bocb_jax.create_model(name, num_classes=10, image_size=32, rngs=nnx.Rngs(0))
    )
    assert count_macs(model, 32) < 20e6
