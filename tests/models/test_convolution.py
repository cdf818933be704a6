"""All forms of convolution, their gradients and second derivatives, against XLA's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import assert_close, draw

from bocb_jax.models import convolution, layers, platform


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution: image (h, w, in), kernel (k, k, in // groups, out)."""

    image: tuple[int, int, int]
    out: int
    k: int
    stride: int = 1
    padding: int | str = 0
    dilation: int = 1
    groups: int = 1

    @property
    def arguments(self):
        p = self.padding
        return {
            "strides": (self.stride, self.stride),
            "padding": p if isinstance(p, str) else ((p, p), (p, p)),
            "dilation": (self.dilation, self.dilation),
            "groups": self.groups,
        }

    def arrays(self):
        kernel = draw(1, self.k, self.k, self.image[2] // self.groups, self.out)
        return jnp.asarray(draw(0, 2, *self.image)), jnp.asarray(kernel)


CONVOLUTIONS = {
    "pixel": Case((5, 6, 4), 3, 1),
    "pixel, strided": Case((7, 6, 4), 3, 1, stride=2),
    "patches": Case((9, 8, 3), 5, 4, stride=4),
    "small map": Case((4, 4, 3), 5, 3, padding=1),
    "small map, strided": Case((7, 5, 3), 5, 3, stride=2, padding=1),
    "small map, dilated": Case((6, 6, 3), 2, 3, padding=1, dilation=2),
    "small map, SAME": Case((6, 5, 3), 2, 3, stride=2, padding="SAME"),
    "large map": Case((9, 9, 3), 4, 3, padding=1),
    "large map, strided": Case((10, 11, 3), 4, 3, stride=2, padding=1),
    "large map, SAME": Case((11, 12, 3), 4, 3, stride=2, padding="SAME"),
    "large map, wide kernel": Case((20, 23, 3), 4, 7, stride=2, padding=3),
    "large map, stride that skips": Case((26, 29, 2), 3, 5, stride=4, padding=2),
    "large map, kernel below the stride": Case((19, 18, 2), 3, 2, stride=3, padding=1),
    "large map, even kernel": Case((9, 8, 2), 3, 4, padding=1),
    "large map, few channels in": Case((9, 8, 2), 9, 3, padding=1),
    "large map, padded beyond the kernel": Case((6, 7, 9), 2, 3, padding=4),
    "large map, dilated": Case((9, 9, 2), 3, 3, padding=2, dilation=2),
    "grouped": Case((6, 6, 4), 6, 3, padding=1, groups=2),
    "depthwise": Case((4, 5, 2), 2, 5, padding=2, groups=2),
    "depthwise, large map": Case((9, 10, 3), 3, 3, padding=1, groups=3),
    "depthwise, strided": Case((9, 12, 3), 3, 3, stride=2, padding=1, groups=3),
    "depthwise, small and strided": Case((5, 8, 3), 3, 5, stride=3, padding=1, groups=3),
    "depthwise, dilated": Case((8, 9, 3), 3, 3, padding=2, dilation=2, groups=3),
    "depthwise, SAME": Case((7, 6, 3), 3, 3, stride=2, padding="SAME", groups=3),
    "depthwise, wider than the map": Case((3, 4, 2), 2, 7, padding=3, groups=2),
    "depthwise, by groups of rows": Case((9, 10, 2), 2, 13, padding=6, groups=2),
    "depthwise, by groups, strided": Case((30, 31, 2), 2, 12, 2, padding=7, dilation=2, groups=2),
}


def value_and_gradients(function, case):
    """Return the output, its gradients for a fixed cotangent, and a Hessian-vector product."""
    x, kernel = case.arrays()
    y = jax.eval_shape(function, x, kernel)
    cotangent, direction = draw(2, *y.shape), (draw(3, *x.shape), draw(4, *kernel.shape))

    def loss(arrays):
        return (jnp.sin(function(*arrays)) * cotangent).sum()

    @jax.jit
    def evaluate(arrays):
        gradients, curvature = jax.jvp(jax.grad(loss), (arrays,), (direction,))
        return function(*arrays), gradients, curvature

    return evaluate((x, kernel))


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_every_form_of_convolution_equals_xlas(case):
    a = case.arguments

    def xla(x, kernel):
        return convolution.xla_conv(
            x, kernel, a["strides"], a["padding"], a["dilation"], case.groups
        )

    def ours(x, kernel):
        return convolution.conv(x, kernel, **a)

    assert_close(value_and_gradients(ours, case), value_and_gradients(xla, case))


def test_the_form_is_chosen_by_platform_and_shape():
    def takes_xlas(case):
        form = jax.make_jaxpr(lambda x, kernel: convolution.conv(x, kernel, **case.arguments))
        return "conv_general_dilated" in str(form(*case.arrays()))

    xlas_on_cpu = {name for name, case in CONVOLUTIONS.items() if takes_xlas(case)}
    assert xlas_on_cpu == {n for n in CONVOLUTIONS if n.startswith("large map")} | {"grouped"}
    with platform.tracing_for("gpu"):
        assert all(takes_xlas(case) for case in CONVOLUTIONS.values())


@pytest.mark.parametrize("band_bytes", [1, 2500], ids=["row by row", "some rows at a time"])
@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n.startswith("large map")])
def test_the_kernel_gradient_by_bands_is_the_same(name, band_bytes, monkeypatch):
    monkeypatch.setattr(convolution, "_BAND_BYTES", band_bytes)
    test_every_form_of_convolution_equals_xlas(CONVOLUTIONS[name])


@pytest.mark.parametrize(
    "name",
    [
        "small map",
        "large map, strided",
        "large map, few channels in",
        "depthwise",
        "depthwise, by groups of rows",
    ],
)
def test_convolution_in_bfloat16_and_over_many_weights(name):
    case = CONVOLUTIONS[name]
    x, kernel = case.arrays()

    @jax.jit
    def ours(x, kernel):
        return convolution.conv(x, kernel, **case.arguments)

    y = ours(x, kernel)
    low = ours(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert_close(low.astype(jnp.float32), y, 2e-2)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])

    @jax.jit
    def gradient(kernel):
        return jax.grad(lambda k: (ours(x, k) ** 2).sum())(kernel)

    alone = jnp.stack([gradient(k) for k in kernels])
    assert_close(jax.vmap(gradient)(kernels), alone)


def test_conv_draws_he_normal_and_adds_its_bias():
    conv = layers.Conv(32, 64, 3, rngs=nnx.Rngs(0), bias_init=nnx.initializers.ones)
    kernel = np.asarray(conv.kernel[...])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert abs(kernel.mean()) < 1e-3
    x = jnp.asarray(draw(0, 1, 5, 5, 32))
    bare = layers.Conv(32, 64, 3, use_bias=False, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(conv(x), bare(x) + 1, rtol=1e-5, atol=1e-5)
