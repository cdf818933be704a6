"""Data on the devices: the same batches, bit for bit, as those that come through the host."""

import io

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from bocb_jax.data import Dataset, from_arrays, on_device, open_dataset
from bocb_jax.data.loader import Loader
from bocb_jax.errors import UserError


def mesh_sharding(devices):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,),
                         devices=jax.devices()[:devices])  # fmt: skip
    return NamedSharding(mesh, P("data"))


def noise(size=50):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (size, 4, 4, 3)).astype(np.uint8)
    return from_arrays("noise", images, np.arange(size) % 3)


def loader(dataset, where, devices=8, **kwargs):
    settings = {"batch_size": 8, "image_size": 4, "sharding": mesh_sharding(devices)}
    return Loader(dataset, on_device=where, **(settings | kwargs))


def take(iterator, count=None):
    with iterator:
        count = len(list(range(count))) if count else None
        return [batch for _, batch in zip(range(count or 10**6), iterator, strict=False)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])
            assert mine[key].dtype == other[key].dtype
            assert mine[key].sharding.is_equivalent_to(other[key].sharding, mine[key].ndim)


@pytest.mark.parametrize("repeats", [1, 3])
def test_training_batches_equal_the_hosts(repeats):
    ours = loader(noise(), "yes").train(seed=4, repeats=repeats)
    theirs = loader(noise(), "no").train(seed=4, repeats=repeats)
    assert_same(take(ours, 15), take(theirs, 15))


def test_evaluation_batches_equal_the_hosts():
    dataset = noise(70)
    for split in dataset.splits:
        ours, theirs = (take(loader(dataset, where).evaluation(split)) for where in ("yes", "no"))
        assert_same(ours, theirs)
        assert sum(float(batch["weight"].sum()) for batch in ours) == len(dataset.splits[split])


def test_one_device_and_eight_give_the_same_batches():
    one, eight = (take(loader(noise(), "yes", devices).train(seed=0), 9) for devices in (1, 8))
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_large_splits_are_sharded(monkeypatch):
    whole = take(loader(noise(), "yes").train(seed=2), 9)
    monkeypatch.setattr(on_device, "MAX_REPLICATED_BYTES", 100)
    divided = loader(noise(), "yes")
    assert_same(take(divided.train(seed=2), 9), whole)
    images = divided._device_split("train").images
    assert images.addressable_shards[0].data.shape[0] == images.shape[0] // 8


def test_host_and_device_continue_each_others_state():
    straight = take(loader(noise(), "yes").train(seed=1), 14)
    other = loader(noise(), "no").train(seed=1)
    first = take(other, 6)
    rest = loader(noise(), "yes").train(seed=1)
    rest.set_state(other.get_state())
    assert_same(first + take(rest, 8), straight)
    with pytest.raises(UserError, match="was made with seed = 1, this run has seed = 2"):
        loader(noise(), "yes").train(seed=2).set_state(other.get_state())


def test_repeated_augmentation_shows_an_image_three_times_in_a_row():
    batches = take(loader(noise(100), "yes", batch_size=16).train(seed=0, repeats=3), 8)
    epoch = np.concatenate([batch["index"] for batch in batches[:4]])
    assert (epoch[:63].reshape(-1, 3) == epoch[:63:3, None]).all()
    assert len(set(epoch)) == -(-len(epoch) // 3)


def test_auto_places_small_data_on_the_devices(monkeypatch):
    assert loader(open_dataset("digits"), "auto").on_device("train")
    monkeypatch.setattr(on_device, "MAX_AUTO_BYTES", 1000)
    assert not loader(open_dataset("digits"), "auto").on_device("train")


def test_encoded_images_are_decoded_once_and_unreadable_ones_have_no_weight(tmp_path, caplog):
    for number in range(30):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        Image.fromarray(np.full((5, 6, 3), number, np.uint8)).save(encoded, "png")
        path.write_bytes(b"no image" if number == 7 else encoded.getvalue())
    dataset: Dataset = open_dataset(f"folder:{tmp_path}", on_corrupt="skip")
    ours, theirs = (
        take(loader(dataset, where, image_size=4).evaluation("train")) for where in ("yes", "no")
    )
    assert_same(ours, theirs)
    assert loader(dataset, "auto").on_device("train")
    with pytest.raises(UserError, match=r"07\.png cannot be read"):
        loader(open_dataset(f"folder:{tmp_path}"), "yes").train(seed=0)
