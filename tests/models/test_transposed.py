import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bocb_jax.errors import UserError
from bocb_jax.models import platform
from bocb_jax.models.transposed import ConvTranspose, transposed_conv


@pytest.mark.parametrize(("side", "stride"), [(4, 2), (2, 2), (3, 1), (6, 2), (5, 3), (8, 4)])
def test_is_the_transpose_of_the_convolution(side, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 3, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((side, side, 7, 4)), jnp.float32)
    pad = (side - stride) // 2

    def convolve(y):
        return lax.conv_general_dilated(
            y,
            kernel,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    shape = jax.ShapeDtypeStruct((2, 5 * stride, 3 * stride, 7), jnp.float32)
    [expected] = jax.linear_transpose(convolve, shape)(x)
    np.testing.assert_allclose(transposed_conv(x, kernel, stride), expected, atol=1e-5, rtol=1e-5)
    with platform.tracing_for("gpu"):
        np.testing.assert_allclose(
            transposed_conv(x, kernel, stride), expected, atol=1e-5, rtol=1e-5
        )


def test_refuses_a_kernel_that_does_not_multiply_the_size():
    with pytest.raises(UserError, match="of 3 pixels at stride 2 does not multiply"):
        ConvTranspose(4, 4, 3, strides=2, rngs=nnx.Rngs(0))
