"""Random erasing: the boxes of the paper, filled with normal noise."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.sample_crops import uniform_draws

from bocb_jax.augment import erasing


def test_erased_boxes_have_the_papers_sizes():
    boxes = jax.jit(jax.vmap(lambda u: erasing.erased_box(u, (32, 32))))(uniform_draws(4000, 22))
    top, left, height, width = map(np.asarray, boxes)
    assert (height > 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    share = height * width / 1024
    assert share.min() > 0.01
    assert share.max() < 0.35
    # Uniform from 0.02 to 1/3, without the large and narrow boxes that do not fit.
    assert abs(share.mean() - 0.172) < 0.01


def test_erasing_fills_a_box_with_standard_normal_noise():
    images = jnp.full((64, 32, 32, 3), 100.0)
    keys = jax.random.split(jax.random.key(0), 64)
    erase = jax.jit(lambda x: jax.lax.map(lambda x: erasing.erase(*x, 1.0), x))
    out = np.asarray(erase((images, uniform_draws(64, 23), keys)))
    erased = (out != 100).any(-1)
    values = out[erased]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((np.abs(values) > 2).mean() - 0.0455) < 0.005
    assert len(np.unique(values)) > 0.4 * min(values.size, 65536)
    for mask in erased:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()
