"""The same seed and step give the same batch: on one device and on eight, resumed or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.build import compiled_program, program_spec
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data import from_arrays
from bocb_jax.data.loader import Loader
from bocb_jax.engine.sharding import batch_sharding
from bocb_jax.recipes import list_recipes
from bocb_jax.resolve import resolve

QUICK = ("pytorch", "deit")  # the other recipes combine the same parts
RECIPES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in list_recipes()
    if name != "digits"
]


def photographs():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (48, 8, 8, 3))
    return from_arrays(
        "photographs", np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8), np.arange(48) % 4
    )


def prepared(recipe, devices, steps, on_device="yes"):
    """Images and targets of some steps, as the training step sees them."""
    settings = {
        "model": "vgg_mini",
        "recipe": recipe,
        "batch_size": 16,
        "epochs": 2,
        "parallel": {"devices": devices},
    }
    config = from_dict(TrainConfig, settings)
    dataset = photographs()
    settings = resolve(config, dataset)
    program = compiled_program(program_spec(config, settings, dataset, 2))
    loader = Loader(
        dataset,
        batch_size=16,
        image_size=32,
        sharding=batch_sharding(program.mesh),
        on_device=on_device,
    )
    key = jax.random.key(7)
    with loader.train(seed=7, repeats=settings.repeats) as batches:
        batches.set_state(batches.get_state() | {"step": steps[0]})
        return [
            jax.device_get(program.passes.prepare(jnp.int32(step), next(batches), key))
            for step in steps
        ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_device_and_eight_see_the_same_bits(recipe):
    one, eight = prepared(recipe, 1, [0, 1, 2]), prepared(recipe, 8, [0, 1, 2], on_device="no")
    for a, b in zip(one, eight, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    # They are random nevertheless: another step gives other pixels.
    assert not np.array_equal(one[0][0], one[2][0])


def test_a_resumed_run_sees_the_same_bits():
    straight, resumed = prepared("deit", 8, [0, 1, 2, 3]), prepared("deit", 8, [2, 3])
    for a, b in zip(straight[2:], resumed, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_mixed_labels_sum_to_one():
    images, targets = prepared("deit", 1, [0])[0]
    assert images.shape == (16, 32, 32, 3)
    assert targets.shape == (16, 4)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
