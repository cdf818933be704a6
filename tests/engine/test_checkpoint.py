"""Checkpoints: what is saved comes back; damage and a full disk lose nothing before them."""

import gc
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.engine import checksums, sharding
from bocb_jax.engine.checkpoint import Checkpoints, best_shapes, read_best
from bocb_jax.engine.state import TrainState
from bocb_jax.errors import UserError

# Orbax leaves the coroutines of a read that failed to the garbage collector, which complains.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True, scope="module")
def no_coroutines_for_later_tests():
    yield
    gc.collect()


PROGRESS = {"elapsed": 1.25, "rows": [{"step": 3, "loss": 0.1}], "data": {"next": 3}}


def a_state(value, size=2000):
    noise = jax.random.normal(jax.random.key(value), (size,))
    params = {"blocks": {0: {"kernel": noise}, 1: {"bias": jnp.full((3,), value, jnp.float32)}}}
    return TrainState(jnp.int32(value), params, {}, (params, jnp.int32(value)), None)


def shape_of(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
    """A folder with states of the steps 1, 2, 3, of which the last two are kept."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, a_state(step), PROGRESS)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    checkpoints.close()
    return tmp_path


def test_what_is_saved_comes_back(saved):
    restored = Checkpoints(saved).restore(shape_of(a_state(0)))
    assert restored.step == 3
    assert restored.progress == PROGRESS
    same(restored.state, a_state(3))


def test_nothing_saved_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(shape_of(a_state(0))) is None
    assert checkpoints.steps("best") == []


def test_a_state_comes_back_onto_other_devices(saved):
    mesh = sharding.make_mesh(8, devices=8)
    leaves = shape_of(a_state(0))
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        leaves,
        sharding.state_sharding(mesh, leaves, 1),
    )
    state = Checkpoints(saved).restore(placed).state
    assert len(state.params["blocks"][0]["kernel"].sharding.device_set) == 8
    same(jax.device_get(state), jax.device_get(a_state(3)))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["halve", "empty", "remove"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(saved, damage, caplog):
    largest = max(files(saved / "last" / "3" / "state"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    if damage == "remove":
        largest.unlink()
    else:
        largest.write_bytes(content[: len(content) // 2] if damage == "halve" else b"")
    checkpoints = Checkpoints(saved)
    restored = checkpoints.restore(shape_of(a_state(0)))
    assert restored.step == 2
    same(restored.state, a_state(2))
    assert (saved / "last" / "3.damaged").is_dir()
    assert "The checkpoint of step 3 cannot be read" in caplog.text
    assert "Resuming from the checkpoint of step 2" in caplog.text
    checkpoints.save(3, a_state(3), PROGRESS)
    checkpoints.wait()
    assert Checkpoints(saved).restore(shape_of(a_state(0))).step == 3


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_flipped_bit_is_found_in_every_file(tmp_path, name, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(2, a_state(2).params, {})
    for step in (1, 2):
        checkpoints.save(step, a_state(step), PROGRESS)
    checkpoints.close()
    damaged = tmp_path / name / "2"
    assert checksums.damage(damaged) is None
    for path in filter(lambda path: path.stat().st_size, files(damaged)):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
        file = "" if path.name == checksums.FILE else str(path.relative_to(damaged))
        assert checksums.damage(damaged).startswith(file)
        if name == "best":
            with pytest.raises(UserError, match=r"best/2 are damaged: .*Copy them again"):
                read_best(tmp_path / "best")
        path.write_bytes(content)
    path.write_bytes(b"")
    assert Checkpoints(tmp_path).restore(shape_of(a_state(0))).step == (1 if name == "last" else 2)
    assert (tmp_path / name / "2.damaged").is_dir()
    assert "cannot be read" in caplog.text


def test_shapes_are_read_without_the_weights(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(2, a_state(2).params, {})
    checkpoints.close()
    shapes = {name: array.shape for name, array in read_best(tmp_path / "best").items()}
    for path in files(tmp_path / "best/2/state/ocdbt.process_0"):
        path.write_bytes(b"")
    assert best_shapes(tmp_path / "best") == shapes
    with pytest.raises(UserError, match="are damaged"):
        read_best(tmp_path / "best")


def test_checkpoints_of_earlier_versions_have_no_checksums(saved, caplog):
    for path in saved.glob("last/*/" + checksums.FILE):
        path.unlink()
    restored = Checkpoints(saved).restore(shape_of(a_state(0)))
    same(restored.state, a_state(3))
    assert not caplog.text


def test_a_state_cut_off_before_its_checksums_is_made_again(saved, caplog):
    (saved / "last" / "3" / checksums.FILE).unlink()
    checkpoints = Checkpoints(saved)
    assert checkpoints.restore(shape_of(a_state(0))).step == 2
    assert "step 3 was cut off" in caplog.text
    assert checkpoints.steps() == [2]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_no_damage_to_any_file_gives_a_wrong_state(saved, cut, tmp_path_factory):
    names = [path.relative_to(saved) for path in files(saved / "last" / "3")]
    for number, name in enumerate(names):
        folder = tmp_path_factory.mktemp(f"damaged{number}") / "checkpoints"
        shutil.copytree(saved, folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(cut * len(content))])
        restored = Checkpoints(folder).restore(shape_of(a_state(0)))
        same(restored.state, a_state(restored.step))
        assert restored.progress == PROGRESS


def test_when_all_are_damaged_the_run_starts_from_the_beginning_with_a_warning(saved, caplog):
    for step in ("2", "3"):
        shutil.rmtree(saved / "last" / step / "state")
    assert Checkpoints(saved).restore(shape_of(a_state(0))) is None
    assert "No other checkpoint is left" in caplog.text
    assert (saved / "last" / "2.damaged").is_dir()


def test_a_full_disk_is_a_sentence_and_earlier_states_are_intact(saved):
    # A limit on the size of files stands in for a disk without space.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints, state = Checkpoints(saved), a_state(4, size=10**6)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
    try:
        checkpoints.save(4, state, PROGRESS)
        with pytest.raises(UserError, match=r"could not be saved to .*last"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    restored = Checkpoints(saved).restore(shape_of(a_state(0)))
    assert restored.step == 3
    same(restored.state, a_state(3))


def test_only_the_best_weights_are_kept_and_later_ones_can_be_taken_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 9):
        weights = {"params": {"fc": {"kernel": jnp.full((3,), step)}}}
        checkpoints.save_best(step, weights, {"validation_accuracy": step / 10})
    checkpoints.wait()
    assert checkpoints.steps("best") == [9]
    np.testing.assert_array_equal(read_best(tmp_path / "best")["fc.kernel"], [9, 9, 9])
    checkpoints.discard_after(8)
    assert checkpoints.steps("best") == []
