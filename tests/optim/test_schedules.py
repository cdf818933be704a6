"""Learning-rate schedules of the recipes, against the formulas of OpenMMLab written as a loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.errors import UserError
from bocb_jax.optim import schedules


def openmmlab(peak, epochs, epoch_steps, warmup, start, end, by_epoch):
    """Return the rates of mmcv's CosineAnnealing, whose cosine also runs during the warm-up."""
    rates = []
    for step in range(epochs * epoch_steps):
        progress = step // epoch_steps / epochs if by_epoch else step / (epochs * epoch_steps)
        rate = end + (peak - end) * (1 + math.cos(math.pi * progress)) / 2
        if step < warmup:
            rate *= 1 - (1 - step / warmup) * (1 - start)
        rates.append(rate)
    return rates


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("warmup", [0, 7, 10])
def test_cosine_under_a_warmup(warmup, by_epoch):
    expected = openmmlab(0.3, 6, 5, warmup, 1e-3, 0.03, by_epoch)
    schedule = schedules.warmup_cosine(
        0.3, warmup, 30, 0.1, warmup_start=1e-3, from_start=True, every=5 if by_epoch else 1
    )
    rates = jax.vmap(schedule)(jnp.arange(30))
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_without_a_start_no_update_is_spent_at_zero():
    schedule = schedules.warmup_cosine(1.0, 3, 10)
    np.testing.assert_allclose([schedule(i) for i in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)


def test_a_start_outside_zero_and_one_is_refused():
    with pytest.raises(UserError, match=r"warmup_start is a fraction of the peak, not 1\.5"):
        schedules.warmup_cosine(1.0, 3, 10, warmup_start=1.5)
