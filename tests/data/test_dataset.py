"""The base class of splits: its defaults, and users' splits that do not derive from it."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from bocb_jax.data import DATASETS, Dataset, Split, from_arrays, open_dataset, register_dataset
from bocb_jax.data.dataset import JoinedSplit, OpenOptions, UserSplit
from bocb_jax.data.decode import RandomCrop
from bocb_jax.data.loader import Loader
from bocb_jax.errors import UserError


def image(value, side=4):
    return np.full((side, side, 3), value, np.uint8)


class Items:
    """The least that a user's split needs: a length and items."""

    def __init__(self, first, size):
        self.first, self.size = first, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        return {"image": image(self.first + index), "label": (self.first + index) % 3}


class Whole(Items):
    """A user's split that also reads whole batches."""

    def gather(self, indices):
        images = np.stack([image(self.first + i) for i in indices])
        labels = ((self.first + indices) % 3).astype(np.int32)
        return {"image": images, "label": labels, "index": indices}


class Varying(Items):
    """A user's split whose images vary in size until it is sized."""

    image_shape = None

    def sized(self, image_size):
        return Items(self.first, self.size)


class Unsized(Items):
    """A user's split that cannot be sized without a size, and need not be."""

    image_shape = None

    def sized(self, image_size):
        raise AssertionError(image_size)


class Bare(Whole):
    """A user's split whose batches have no index."""

    def gather(self, indices):
        batch = super().gather(indices)
        return {"image": batch["image"], "label": batch["label"]}


def dataset(kind, image_shape=(4, 4, 3)):
    splits = {"train": kind(0, 40), "validation": kind(40, 10), "test": kind(50, 10)}
    return Dataset("own", 3, splits, image_shape)


def equal_arrays():
    images = np.stack([image(i) for i in range(60)])
    labels = np.arange(60) % 3
    parts = [(images[part], labels[part]) for part in (slice(40, 50), slice(50, 60))]
    return from_arrays(
        "own", images[:40], labels[:40], validation=parts[0], test=parts[1], split_seed=0
    )


def batches(data, **kwargs):
    sharding = NamedSharding(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), P("data"))
    loader = Loader(data, batch_size=8, image_size=4, sharding=sharding, **kwargs)
    with loader.train(seed=3) as train, loader.evaluation("test") as test:
        return [next(train) for _ in range(7)] + list(test)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("on_device", ["auto", "yes"])
@pytest.mark.parametrize("kind", [Items, Whole, Varying, Unsized, Bare])
def test_a_users_split_gives_the_batches_of_equal_arrays(kind, on_device):
    data = dataset(kind, None if kind is Varying else (4, 4, 3))
    assert all(isinstance(split, Split) for split in data.splits.values())
    assert_same(batches(data, on_device=on_device), batches(equal_arrays()))


@pytest.mark.parametrize("kind", [Items, Whole])
def test_users_splits_are_joined_for_the_papers_protocol(kind):
    joined = dataset(kind).tuned_on_test()
    assert len(joined.splits["train"]) == 50
    assert joined.splits["validation"] is joined.splits["test"]
    assert_same(batches(joined), batches(equal_arrays().tuned_on_test()))


@pytest.mark.parametrize("kinds", [("own", "arrays"), ("arrays", "own"), ("files", "arrays")])
def test_splits_of_unlike_kinds_are_joined_for_the_papers_protocol(kinds, tmp_path):
    arrays, own = equal_arrays(), dataset(Items)
    splits = {"own": own.splits, "arrays": arrays.splits}
    if "files" in kinds:
        train = arrays.splits["train"]
        for index, label in enumerate(train.labels):
            folder = tmp_path / "train" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(train.images[index]).save(folder / f"{index:03}.png")
        # Files are sorted by class, and validation and test are held out of them.
        splits["files"] = open_dataset(f"folder:{tmp_path}").splits
    train, validation = (
        splits[kind][key] for kind, key in zip(kinds, ("train", "validation"), strict=True)
    )
    mixed = {"train": train, "validation": validation, "test": arrays.splits["test"]}
    shape = None if "files" in kinds else (4, 4, 3)
    joined = Dataset("own", 3, mixed, shape).tuned_on_test()
    found = joined.splits["train"].load()
    assert found["index"].tolist() == list(range(len(train) + len(validation)))
    last = validation.load()
    np.testing.assert_array_equal(found["image"][len(train) :], last["image"])
    np.testing.assert_array_equal(found["label"][len(train) :], last["label"])
    assert len(batches(joined)) == 9


@pytest.mark.parametrize("kind", [Items, Whole])
def test_a_users_data_set_opens_by_name(kind, monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    register_dataset("own")(lambda options: dataset(kind))
    assert_same(batches(open_dataset("own")), batches(equal_arrays()))


def test_a_splits_own_index_survives_joining():
    class Skips(Items):
        def __getitem__(self, index):  # skips the first one as unreadable
            found = max(index, 1)
            return super().__getitem__(found) | {"index": found}

    joined = JoinedSplit(UserSplit(Skips(0, 4)), UserSplit(Skips(4, 4)))
    assert joined.load()["index"].tolist() == [1, 1, 2, 3, 5, 5, 6, 7]
    assert joined.load()["image"][:, 0, 0, 0].tolist() == [1, 1, 2, 3, 5, 5, 6, 7]


def test_gather_passes_each_example_its_key():
    class Random(Items, Split):
        def draw(self, index, key):
            return {"image": image(sum(key)), "label": index}

    batch = Random(0, 9).gather(np.array([4, 2]), [(1, 2, 3), (4, 5, 6)])
    assert batch["image"][:, 0, 0, 0].tolist() == [6, 15]
    assert batch["label"].tolist() == batch["index"].tolist() == [4, 2]
    assert batch["label"].dtype == batch["index"].dtype == np.int32


def test_a_split_that_cannot_crop_says_so():
    with pytest.raises(UserError, match="vary in size, and its splits cannot crop"):
        batches(dataset(Varying, None), crop=RandomCrop())


def test_images_of_unequal_shapes_are_refused():
    class Unequal(Items):
        def __getitem__(self, index):
            return {"image": image(0, side=4 + index % 2), "label": 0}

    with pytest.raises(UserError, match=r"differ in shape.*`sized\(image_size\)`"):
        batches(dataset(Unequal, None), on_device="yes")


@pytest.mark.parametrize(
    ("ratio", "takes", "given"),
    [
        (1.0, lambda size: size, [8]),
        (0.9, lambda size: size, [8]),
        (1.0, lambda size, ratio=1.0: size, [8]),
        (0.9, lambda size, ratio=1.0: size, [8, 0.9]),
        (1.0, lambda size, ratio: size, [8, 1.0]),
        (0.9, lambda size, *more: size, [8, 0.9]),
    ],
)
def test_a_users_sized_is_given_a_crop_ratio_if_it_takes_one(ratio, takes, given, caplog):
    calls = []

    examples = Items(0, 4)
    examples.sized = functools.wraps(takes)(lambda *given: calls.append([*given]) or [])
    split = UserSplit(examples)
    assert len(split.sized(8, ratio)) == 0
    assert calls == [given]
    assert ("takes no crop ratio" in caplog.text) == (ratio != 1 and given == [8])


def test_a_split_that_knows_no_crop_ratio_is_tested(caplog):
    assert_same(batches(dataset(Varying, None), crop_ratio=0.9), batches(equal_arrays()))
    assert "`sized` of Varying takes no crop ratio" in caplog.text


def test_on_corrupt_is_checked():
    with pytest.raises(UserError, match="'fail' or 'skip'"):
        OpenOptions(on_corrupt="ignore")


class Own(Items):
    """A user's split with one mistake."""

    def __init__(self, first, size, **changes):
        super().__init__(first, size)
        self.changes = changes

    def __getitem__(self, index):
        return super().__getitem__(index) | self.changes


@pytest.mark.parametrize("on_device", ["no", "yes"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 4, 3))}, r"images of float64 and shape \(\d+, 4, 4, 3\)"),
        ({"image": np.ones((4, 4, 3), bool)}, "images of bool"),
        ({"image": np.zeros((3, 4, 4), np.uint8)}, r"shape \(\d+, 3, 4, 4\)"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"shape \(\d+, 4, 4\)"),
        ({"image": [[0]]}, "give a dict of an 'image', an array"),
        ({"label": 3}, "has the label 3, which is none of its 3 classes"),
        ({"label": -1}, "has the label -1"),
        ({"label": 1.5}, r"label of example \d+ of the data set is 1\.5; give an integer"),
        ({"label": float("nan")}, r"label of example \d+ of the data set is nan"),
        ({"label": "cat"}, "is 'cat'; give an integer"),
        ({"label": np.array([1])}, r"is array\(\[1\]\); give an integer"),
    ],
)
def test_a_users_examples_are_checked(changes, message, on_device):
    splits = {key: Own(0, 10, **changes) for key in ("train", "validation", "test")}
    data = Dataset("own", 3, splits, (4, 4, 3))
    with pytest.raises(UserError, match=message):
        batches(data, on_device=on_device)


class Pairs(Items):
    def __getitem__(self, index):
        return image(0), 0


def test_a_users_pairs_are_refused():
    split = UserSplit(Pairs(0, 4))
    for each in (split, split.joined(split)):
        with pytest.raises(UserError, match="Example 0 of the data set is tuple; give a dict"):
            each.load()


@pytest.mark.parametrize("kind", [float, np.uint8, np.int64, jax.numpy.int32, np.asarray])
def test_whole_numbers_of_any_kind_are_labels(kind):
    splits = {key: Own(0, 10, label=kind(2)) for key in ("train", "validation", "test")}
    batch = batches(Dataset("own", 3, splits, (4, 4, 3)))[0]
    assert batch["label"].tolist() == [2] * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x | {"label": np.zeros(8)}, r"labels of float64 and shape \(8,\)"),
        (
            lambda x: {"images": x["image"], "label": x["label"]},
            "is 'images', 'label'; give a dict",
        ),
        (lambda x: {"image": x["image"]}, "is 'image'; give a dict"),
        (lambda x: (x["image"], x["label"]), "A batch of the data set is tuple; give a dict"),
        (lambda x: None, "is NoneType; give a dict"),
        (
            lambda x: {key: value[1:] for key, value in x.items()},
            "7 images, where 8 were asked for",
        ),
    ],
)
def test_a_users_whole_batches_are_checked(change, message):
    class Wrong(Whole):
        def gather(self, indices):
            return change(super().gather(indices))

    with pytest.raises(UserError, match=message):
        batches(dataset(Wrong))
