"""Batches: the same examples at the same step, on any number of processes and devices."""

import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bocb_jax.data.arrays import ArraySplit
from bocb_jax.data.dataset import Split
from bocb_jax.data.pipeline import evaluation_batches, steps_per_epoch, train_batches
from bocb_jax.errors import UserError


class Plain(Split):
    """A split with no more than a length and items; every image holds its own index."""

    def __init__(self, size=50):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"image": np.full((4, 4, 3), index, np.uint8), "label": index % 10}


def arrays(size=50):
    images = np.stack([Plain()[i]["image"] for i in range(size)])
    return ArraySplit(images, np.arange(size, dtype=np.int32) % 10)


SPLITS = pytest.mark.parametrize("split", [arrays(), Plain()], ids=["arrays", "items"])


def take(iterator, count):
    with iterator:
        return [next(iterator) for _ in range(count)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])


@SPLITS
def test_an_epoch_has_every_example_at_most_once(split):
    per_epoch = steps_per_epoch(50, 8)
    assert per_epoch == 6
    batches = take(train_batches(split, batch_size=8, seed=0), 3 * per_epoch)
    epochs = np.stack([batch["index"] for batch in batches]).reshape(3, 48)
    for epoch in epochs:
        assert len(set(epoch)) == 48
        assert not np.array_equal(epoch, np.sort(epoch))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for batch in batches:
        assert batch["image"].shape == (8, 4, 4, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 10)


def test_epochs_and_seeds_differ_in_order():
    # The second epoch of a seed must not be the first of the next seed, since seeds are compared.
    first, second = take(train_batches(arrays(), batch_size=50, seed=0), 2)
    (other,) = take(train_batches(arrays(), batch_size=50, seed=1), 1)
    orders = {tuple(batch["index"]) for batch in (first, second, other)}
    assert len(orders) == 3


def test_the_order_never_changes():
    # Old checkpoints resume in this order; if this fails, no earlier run can be continued.
    (batch,) = take(train_batches(arrays(), batch_size=8, seed=3, start_step=7), 1)
    assert batch["index"].tolist() == [45, 8, 15, 40, 48, 12, 44, 24]


@SPLITS
def test_a_batch_depends_only_on_seed_and_step(split):
    straight = take(train_batches(split, batch_size=8, seed=5), 20)
    assert_same(take(train_batches(split, batch_size=8, seed=5, start_step=13), 7), straight[13:])


@SPLITS
@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_the_processes_make_the_whole(split, processes):
    def parts(make, **kwargs):
        return [
            list_all(make(split, batch_size=8, process_index=i, process_count=processes, **kwargs))
            for i in range(processes)
        ]

    def list_all(iterator):
        return take(iterator, min(iterator.total, 9))

    for make, kwargs in ((train_batches, {"seed": 1}), (evaluation_batches, {})):
        whole = list_all(make(split, batch_size=8, **kwargs))
        joined = [
            {key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts(make, **kwargs), strict=True)
        ]
        assert_same(joined, whole)


@SPLITS
def test_state_survives_json_and_counts_what_was_handed_out(split):
    straight = take(train_batches(split, batch_size=8, seed=0), 12)
    with train_batches(split, batch_size=8, seed=0) as iterator:
        assert_same([next(iterator) for _ in range(5)], straight[:5])
        time.sleep(0.05)  # several batches have been read ahead
        state = json.loads(json.dumps(iterator.get_state()))
        assert state["step"] == 5
        next(iterator)
        iterator.set_state(state)  # rewinds while threads are running
        assert_same([next(iterator) for _ in range(7)], straight[5:])
    fresh = train_batches(split, batch_size=8, seed=0)
    fresh.set_state(state)
    assert_same(take(fresh, 7), straight[5:])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 10}, "batch_size"),
        ({"size": 49}, "examples"),
        ({"repeats": 3}, "repeats"),
    ],
)
def test_a_state_of_another_order_is_refused(change, named):
    def make(size=50, **kwargs):
        return train_batches(arrays(size), **{"batch_size": 8, "seed": 0, **kwargs})

    with pytest.raises(UserError, match=named):
        make(**change).set_state(make().get_state())
    with pytest.raises(UserError, match=named):
        make().set_state(make(**change).get_state())


def test_a_state_with_a_setting_of_a_later_version_is_refused():
    iterator = train_batches(arrays(), batch_size=8, seed=0)
    with pytest.raises(UserError, match=r"made with drop = 2, this run has drop = None"):
        iterator.set_state(iterator.get_state() | {"drop": 2})


def test_a_state_saved_before_there_were_repeats_is_continued():
    iterator = train_batches(arrays(), batch_size=8, seed=3)
    iterator.set_state({"step": 7, "examples": 50, "batch_size": 8, "seed": 3})
    (batch,) = take(iterator, 1)
    assert batch["index"].tolist() == [45, 8, 15, 40, 48, 12, 44, 24]
    fresh = train_batches(arrays(), batch_size=8, seed=3)
    assert fresh.get_state() == {"step": 0, "examples": 50, "batch_size": 8, "seed": 3}
    fresh.set_state(fresh.get_state() | {"repeats": 1})


@SPLITS
@pytest.mark.parametrize("batch_size", [7, 10, 64])
def test_evaluation_sees_every_example_exactly_once(split, batch_size):
    iterator = evaluation_batches(split, batch_size=batch_size)
    with iterator:
        batches = list(iterator)
    assert len(batches) == iterator.total == -(-50 // batch_size)
    assert {batch["image"].shape for batch in batches} == {(batch_size, 4, 4, 3)}
    weight = np.concatenate([batch["weight"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(index[weight == 1], np.arange(50))
    assert set(weight) <= {0.0, 1.0}
    np.testing.assert_array_equal(weight[:50], 1)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (1, 8)])
def test_batches_land_on_the_devices_as_the_mesh_says(shape):
    mesh = jax.make_mesh(
        shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: np.prod(shape)],
    )  # fmt: skip
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    host = take(train_batches(arrays(), batch_size=16, seed=0), 4)
    device = take(train_batches(arrays(), batch_size=16, seed=0, sharding=sharding), 4)
    assert_same(device, host)
    for array in device[0].values():
        assert isinstance(array, jax.Array)
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    host = take(evaluation_batches(arrays(), batch_size=16), 4)
    assert_same(take(evaluation_batches(arrays(), batch_size=16, sharding=sharding), 4), host)


@SPLITS
def test_threads_end_with_the_iterator(split):
    before = set(threading.enumerate())
    evaluation_batches(split, batch_size=8)
    assert set(threading.enumerate()) == before  # none starts before it is needed
    for make, kwargs in ((train_batches, {"seed": 0}), (evaluation_batches, {})):
        iterator = make(split, batch_size=8, **kwargs)
        next(iterator)
        iterator.close()
        dropped = make(split, batch_size=8, **kwargs)
        next(dropped)
        del dropped
        exhausted = evaluation_batches(split, batch_size=8)
        list(exhausted)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_an_error_in_a_thread_reaches_the_caller_unchanged():
    class Broken(Plain):
        def __getitem__(self, index):
            if index == 17:
                raise UserError("Example 17 is not well.")
            return super().__getitem__(index)

    iterator = evaluation_batches(Broken(), batch_size=8)
    next(iterator)
    next(iterator)
    with pytest.raises(UserError) as caught:
        next(iterator)
    assert str(caught.value) == "Example 17 is not well."


def test_worker_processes_give_the_same_batches():
    straight = take(train_batches(Plain(), batch_size=8, seed=0, start_step=2), 5)
    workers = train_batches(Plain(), batch_size=8, seed=0, start_step=2, workers=2)
    assert_same(take(workers, 5), straight)
    assert not multiprocessing.active_children()


def test_a_killed_worker_process_is_an_error_that_the_run_explains():
    from bocb_jax.engine.outcome import explanation

    with train_batches(Plain(), batch_size=8, seed=0, workers=1) as batches:
        next(batches)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(RuntimeError) as caught:
            take(batches, 100)
    assert explanation(caught.value, "runs/a").startswith("A data worker was ended from outside")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_batches(arrays(), batch_size=64, seed=0), "50 images, fewer than one batch"),
        (lambda: train_batches(arrays(), batch_size=9, seed=0, process_count=2), "divided"),
        (lambda: evaluation_batches(arrays(), batch_size=9, process_count=2), "divided"),
    ],
)
def test_bad_batch_sizes_are_refused_at_once(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_exhausted_iterator_stays_exhausted():
    iterator = evaluation_batches(arrays(), batch_size=25)
    assert len(list(iterator)) == 2
    assert list(iterator) == []


@pytest.mark.slow
def test_two_real_processes_whose_devices_alternate_in_the_mesh():
    script = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bocb_jax.data import open_dataset
from bocb_jax.data.pipeline import train_batches
split = open_dataset("digits").splits["train"]
want = next(train_batches(split, batch_size=16, seed=0))
for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 2, 0]):
    mesh = Mesh(np.array(jax.devices())[order].reshape(2, 2), ("data", "fsdp"))
    got = next(train_batches(
        split, batch_size=16, seed=0, sharding=NamedSharding(mesh, P(("data", "fsdp")))
    ))
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(got)
    for key in want:
        np.testing.assert_array_equal(whole[key].addressable_data(0), want[key])
print("equal")
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, port, str(i)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=Path(__file__).parents[2],
        )
        for i in range(2)
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "equal" in said
