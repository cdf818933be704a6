"""Optimizers that are evaluated elsewhere than they train: their schedule, and BatchNorm."""

import pytest

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data.sources import open_dataset
from bocb_jax.optim.schedules import Schedule, WarmupCosine
from bocb_jax.program import program_spec, resolve


@pytest.mark.parametrize(
    ("opt", "asked", "expected"),
    [
        ("adamw", None, WarmupCosine),
        ("schedule_free_adamw", None, Schedule),
        ("sam+schedule_free_sgd", None, Schedule),
        ("schedule_free_adamw", "cosine", WarmupCosine),
    ],
)
def test_the_schedule_is_the_optimizers_own_unless_asked_otherwise(opt, asked, expected):
    config = from_dict(TrainConfig, {"opt": opt, "schedule": {"name": asked}})
    dataset = open_dataset("digits")
    spec = program_spec(config, resolve(config, dataset), dataset, steps_per_epoch=20)
    assert type(spec.schedule) is expected
    assert spec.schedule.warmup_steps > 0
