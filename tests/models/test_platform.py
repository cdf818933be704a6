"""Models are traced for the platform that a caller names, whatever devices this process has."""

import threading

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bocb_jax
from bocb_jax.models import layers, platform

MAP = jnp.zeros((2, 8, 8, 4))
depthwise = layers.depthwise_conv(4, 3, rngs=nnx.Rngs(0))
dense = layers.Linear(4, 5, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("layer", "on_cpu", "elsewhere"),
    [
        (depthwise, "custom_vjp", "conv_general_dilated"),
        (dense, "f32[128,5] = dot_general", "f32[2,8,8,5] = dot_general"),
        (lambda x: layers.max_pool(x, 2), "custom_vjp", "reduce_window_max"),
    ],
    ids=["convolution", "dense layer", "pooling"],
)
def test_the_target_selects_the_form(layer, on_cpu, elsewhere):
    def traced():
        return str(jax.make_jaxpr(layer)(MAP)).replace("call", "")

    assert platform.target() == jax.default_backend() == "cpu"
    assert on_cpu in traced()
    for other in ("gpu", "tpu"):
        with platform.tracing_for(other):
            assert platform.target() == other
            assert elsewhere in traced()
            assert on_cpu not in traced()
            with platform.tracing_for("cpu"):
                assert on_cpu in traced()
    assert on_cpu in traced()


def test_a_jitted_function_is_traced_again_for_another_target():
    step = jax.jit(depthwise)

    def lowered():
        return step.trace(MAP).lower(lowering_platforms=(platform.target(),)).as_text()

    assert "stablehlo.convolution" not in lowered()
    with platform.tracing_for("tpu"):
        assert "stablehlo.convolution" in lowered()
    assert "stablehlo.convolution" not in lowered()


def test_the_target_is_this_threads_alone():
    seen = []
    with platform.tracing_for("tpu"):
        thread = threading.Thread(target=lambda: seen.append(platform.target()))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_a_whole_backbone_lowers_for_a_tpu():
    model = bocb_jax.create_model("convnext_mini", num_classes=3, image_size=32, rngs=nnx.Rngs(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    with platform.tracing_for("tpu"):
        text = jax.jit(model).trace(images).lower(lowering_platforms=("tpu",)).as_text()
    # The stem, three downsamplings, and the depthwise convolution of each of the six blocks.
    assert text.count("stablehlo.convolution") == 10
