"""Which weights of which files are read, and how others are refused."""

import json
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from helpers.torch_files import Call, Global, legacy, tensor, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from bocb_jax.errors import UserError
from bocb_jax.weight_files import torch_pickle
from bocb_jax.weight_files.read import read_weights

FORMS = {"zip": zipped, "legacy": legacy}
ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
PLAIN = {"a.weight": ROWS, "a.bias": ROWS[0]}
MORE = {name: array + 1 for name, array in PLAIN.items()}


def read(tmp_path, content, name="weights.pth", **choice):
    """The arrays of a file with this content, and what was said."""
    said = []
    path = tmp_path / name
    path.write_bytes(content)
    return read_weights(path, say=said.append, **choice), said


def refusal(tmp_path, content, name="weights.pth", **choice):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, name, **choice)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    return message


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["W.PTH", "w.pth.tar", "w.ckpt", "w.bin", "w.safetensors.pth"])
def test_the_content_decides_not_the_name(tmp_path, form, name):
    same(read(tmp_path, FORMS[form](PLAIN), name)[0], PLAIN)


def test_safetensors_of_any_type_and_name(tmp_path):
    types = [ml_dtypes.bfloat16, np.float16, np.float64, np.int8, np.bool_, np.uint64]
    arrays = {np.dtype(kind).name: ROWS.astype(kind) for kind in types}
    for name in ("w.safetensors", "W.SAFETENSORS", "w.pth"):
        read_back, _ = read(tmp_path, save(arrays), name)
        same({n: read_back[n] for n in arrays}, arrays)
    header = {"x": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + b"\x3c\x40"
    assert read(tmp_path, content)[0]["x"].astype(float).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("form", FORMS)
def test_views_and_types_of_tensors(tmp_path, form):
    big = np.arange(12, dtype=np.float32)
    found = {
        "t": tensor(big, "1", (3, 4), (1, 3)),
        "row": tensor(big, "2", (4,), (3,), 2),
        "one": tensor(big, "3", (1, 2), (10**15, 1), 10),
        "none": tensor(big, "4", (0, 7), (7, 1)),
        "scalar": tensor(big, "5", (), (), 7),
        "brain": ROWS.astype(ml_dtypes.bfloat16),
        "wave": ROWS.astype(np.complex64),
        "parameter": Call("torch._utils", "_rebuild_parameter", ROWS, True, {}),
        "subclass": Call(
            "torch._tensor", "_rebuild_from_type_v2",
            Global("torch._utils", "_rebuild_tensor_v2"), Global("my.code", "Tensor"),
            tensor(big, "6").arguments, {},
        ),
    }  # fmt: skip
    arrays, _ = read(tmp_path, FORMS[form](found))
    wanted = {
        "t": big.reshape(4, 3).T, "row": big[2::3], "one": big[None, 10:],
        "none": big[:0].reshape(0, 7), "scalar": big[7], "brain": found["brain"],
        "wave": found["wave"], "parameter": ROWS, "subclass": big,
    }  # fmt: skip
    same(arrays, wanted)
    arrays["t"][0] = 5.0  # a copy, which can be changed


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    same(read(tmp_path, zipped({prefix + n: a for n, a in PLAIN.items()}))[0], PLAIN)
    inner = {n.replace("a.", "a._orig_mod."): a for n, a in PLAIN.items()}
    same(read(tmp_path, zipped(inner))[0], PLAIN)


PLACES = ["state_dict", "model_state_dict", "model", "net", "network", "params"]
AVERAGES = ["model_ema", "state_dict_ema", "ema"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("average", AVERAGES)
def test_a_checkpoint_with_averages(tmp_path, place, average):
    other = {"optimizer": {"state": {0: {"step": ROWS}}}, "epoch": 3, "args": Call("a", "b")}
    content = zipped({average: MORE, place: PLAIN, **other})
    arrays, [said] = read(tmp_path, content)
    same(arrays, PLAIN)
    assert f"under '{place}' are taken; --init-ema takes the averages in '{average}'" in said
    arrays, [said] = read(tmp_path, content, ema=True)
    same(arrays, MORE)
    assert f"the averaged weights under '{average}' are taken" in said
    same(read(tmp_path, zipped({place: {"module": PLAIN}, **other}))[0], PLAIN)
    arrays, [said] = read(tmp_path, zipped({average: MORE, **other}))
    same(arrays, MORE)
    assert "no weights but averaged ones" in said
    assert "no averaged weights" in refusal(tmp_path, zipped({place: PLAIN}), ema=True)


def test_only_the_memory_of_what_is_wanted_is_read(tmp_path):
    content = bytearray(zipped({"model": PLAIN, "optimizer": {"w": np.full(3, 7e7, np.float32)}}))
    at = content.index(np.full(3, 7e7, np.float32).tobytes())
    content[at] ^= 1  # in the state of the optimizer, which is not read
    same(read(tmp_path, bytes(content))[0], PLAIN)


def test_weights_in_several_files(tmp_path):
    (tmp_path / "one.safetensors").write_bytes(save({"a.weight": ROWS}))
    (tmp_path / "two.bin").write_bytes(zipped({"a.bias": ROWS[0]}))

    def index(**places):
        return json.dumps({"metadata": {}, "weight_map": places}).encode()

    name = "model.safetensors.index.json"
    whole = index(**{"a.weight": "one.safetensors", "a.bias": "two.bin"})
    same(read(tmp_path, whole, name)[0], PLAIN)
    with pytest.raises(UserError, match=r"no file of weights at .*three\.bin"):
        read(tmp_path, index(x="three.bin"), name)
    for outside in ("../one.safetensors", "/etc/passwd", "..", name, 3):
        assert "no file beside it" in refusal(tmp_path, index(x=outside), name)
    for other in (b"{", b"[]", b'{"weight_map": 3}', b"[" * 100_000, b"\xff\xfe"):
        assert "no index of weights" in refusal(tmp_path, other, name)


MODULE = Call(
    "my.nets", "Net", state={"_parameters": {}, "_modules": {"a": 1}, "training": True}
)  # fmt: skip
TIED = tensor(np.zeros(999, np.float32))
REFUSED = {
    "int key": ({0: ROWS, "a": ROWS}, "one of its names is 0, not text"),
    "tuple key": ({("a", 1): ROWS, 2.5: ROWS}, "one of its names is 2.5"),
    "list": ([ROWS, ROWS], "holds no state dict"),
    "tensor": (ROWS, "holds no state dict"),
    "number": (3, "holds no state dict"),
    "parts": ({"encoder": PLAIN, "decoder": PLAIN}, "only 'encoder', 'decoder'"),
    "several": ({"net": PLAIN, "model": MORE}, "several sets of weights, model and net"),
    "twice": ({"module.a": ROWS, "a": ROWS}, "holds 'a' twice"),
    "module": (MODULE, r"a whole module (my.nets.Net)"),
    "inner module": ({"model": MODULE, "epoch": 3}, r"a whole module (my.nets.Net)"),
    "sparse": ({"a": Call("torch._utils", "_rebuild_sparse_tensor", 1, 2)}, "that is sparse"),
    "quantized": ({"a": Call("torch._utils", "_rebuild_qtensor", 1)}, "that is quantized"),
    "meta": (
        {"a": Call("torch._utils", "_rebuild_meta_tensor_no_storage", 1)}, "that is without values"
    ),
    "beyond": ({"a": tensor(ROWS, "0", (3, 3), (3, 1))}, "reaches beyond its memory"),
    "behind": ({"a": tensor(ROWS, "0", (2,), (1,), 5)}, "reaches beyond its memory"),
    "negative stride": ({"a": tensor(ROWS, "0", (2,), (-1,))}, "not possible"),
    "negative offset": ({"a": tensor(ROWS, "0", (2,), (1,), -1)}, "not possible"),
    "negative shape": ({"a": tensor(ROWS, "0", (-2,), (1,))}, "not possible"),
    "other strides": ({"a": tensor(ROWS, "0", (2,), (1, 1))}, "not possible"),
    "fraction": ({"a": tensor(ROWS, "0", (2.0,), (1,))}, "not possible"),
    "many axes": ({"a": tensor(ROWS, "0", (1,) * 40, (1,) * 40)}, "not possible"),
    "stride 0": ({"a": tensor(ROWS, "0", (2**20, 2**13), (0, 0))}, "repeats its memory"),
    "overflow": ({"a": tensor(ROWS, "0", (2**40, 2**40), (0, 0))}, "repeats its memory"),
    "repeated": (dict.fromkeys(map(str, range(200)), TIED), "repeats its memory"),
    "no storage": ({"a": Call("torch._utils", "_rebuild_tensor_v2", 1, 0, (), (), 0, {})},
        "not possible"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_state_dict_is_a_sentence(tmp_path, form, case):
    found, words = REFUSED[case]
    assert words in refusal(tmp_path, FORMS[form](found))


BEGINNINGS = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "page2": (b"<html><body>403</body>", "web page"),
    "XML": (b'<?xml version="1.0"?><Error/>', "XML page"),
    "gzip": (b"\x1f\x8b\x08\0\0", "gunzip"),
    "xz": (b"\xfd7zXZ\0", "unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd", "unzstd"),
    "tar": (b"a" + bytes(256) + b"ustar" + bytes(300), "tar -xf"),
    "HDF5": (b"\x89HDF\r\n", "HDF5"),
    "npy": (b"\x93NUMPY\1\0", "NumPy array"),
    "JSON": (b'{"error": "Unauthorized"}', "JSON"),
    "empty": (b"", "is empty"),
    "text": (b"hello", "no file of weights"),
    "pickle": (pickle.dumps({"a": 1}), "older format"),
    "zip": (zipped({}, root="x").replace(b"data.pkl", b"atad.pkl"), "not one that torch.save"),
    "script": (zipped(PLAIN, **{"constants.pkl": b""}), "TorchScript"),
    "big-endian": (zipped(PLAIN, byteorder=b"big"), "byte order"),
    "big-endian legacy": (legacy(PLAIN, little_endian=False), "byte order"),
    "compressed": (zipped(PLAIN, compression=zipfile.ZIP_DEFLATED), "compressed"),
}


@pytest.mark.parametrize("case", BEGINNINGS)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_of_another_kind_are_recognized(tmp_path, case, name):
    content, words = BEGINNINGS[case]
    if name == "w.safetensors" and case in {"text", "pickle", "zip", "script", "compressed"} | {
        "big-endian", "big-endian legacy"
    }:  # fmt: skip
        words = "no safetensors file"
    assert words in refusal(tmp_path, content, name)


# --- Bounds ------------------------------------------------------------------------------------

HUGE = 2**31 - 1
PICKLES = {
    "memo": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "text": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b".",
    "number": b"\x80\x02\x8b" + struct.pack("<i", HUGE) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "digits": b"L" + b"9" * 10**6 + b"L\n.",
    "deep": b"\x80\x02" + b"(" * 20_000 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 15_000 + b".",
    # Each pair holds the one before twice: hashing or printing it takes 2**60 steps.
    "laughs": b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 60 + b"}h\0Ns.",
    "many": b"\x80\x02" + b"]0" * 15_000 + b".",
    # A list of 5,000 pairs that is made a dict 1,000 times.
    "work": b"\x80\x02](" + b"NN\x86" * 5000 + b"eq\0" + (
        b"ccollections\nOrderedDict\nh\0\x85R0"
    ) * 1000 + b".",
    "shapes": b"\x80\x02](" + b"K\1" * 10**4 + b"eq\0" + (
        b"ctorch._utils\n_rebuild_tensor\n(Nh\0K\1h\0tR0"
    ) * 1000 + b".",
    "no stop": b"\x80\x02}",
    "extension": b"\x80\x02\x82\x01.",
    "empty stack": b"\x80\x02sss.",
}  # fmt: skip


def peak(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", PICKLES)
def test_small_pickles_take_little_memory(tmp_path, monkeypatch, form, case):
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 20_000)
    content = FORMS[form]((PICKLES[case], []))
    used = peak(lambda: refusal(tmp_path, content))
    assert used < 64 * len(content) + 2**24


def test_archives_take_no_more_than_their_size(tmp_path):
    bomb = zipped({"a": np.zeros(5 * 10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 50_000
    assert peak(lambda: refusal(tmp_path, bomb)) < 2**20
    # All members at the place of the first, which is large.
    content = bytearray(zipped({f"a{i}": np.zeros(9999, np.float32) for i in range(40)}))
    directory = content.index(b"PK\1\2")
    entries = [i for i in range(directory, len(content)) if content[i : i + 4] == b"PK\1\2"]
    for entry in entries[2:]:
        content[entry + 42 : entry + 46] = content[entries[1] + 42 : entries[1] + 46]
    refusal(tmp_path, bytes(content))
    for at, size in ((20, 4), (24, 4)):  # compressed and plain size of the last member
        longer = bytearray(zipped(PLAIN))
        entry = longer.rindex(b"PK\1\2")
        longer[entry + at : entry + at + size] = b"\xff\xff\xff\x7f"
        assert peak(lambda longer=longer: refusal(tmp_path, bytes(longer))) < 2**20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [2**40, 2**40]}, "not as many bytes"),
        ({"shape": [-2, -3]}, "shape of 'x'"),
        ({"shape": [True, 6]}, "shape of 'x'"),
        ({"shape": [1] * 40 + [6]}, "shape of 'x'"),
        ({"dtype": "F4"}, "type that is not understood"),
        ({"dtype": 3}, "does not describe"),
        ({"data_offsets": [0]}, "does not describe"),
        ({"data_offsets": [8, 32]}, "does not begin where"),
        ({"data_offsets": [24, 48]}, "does not begin where"),
        ({"shape": [20], "data_offsets": [0, 80]}, "reaches beyond"),
        ({"shape": [1], "data_offsets": [0, 4]}, "goes on after"),
    ],
)
def test_headers_of_safetensors_are_checked(tmp_path, change, words):
    header = {"x": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]} | change}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(24)
    assert words in refusal(tmp_path, content)


def test_a_header_that_is_long_deep_or_doubled_is_refused(tmp_path):
    def message(text, length=None):
        return refusal(tmp_path, struct.pack("<Q", length or len(text)) + text, "w.safetensors")

    assert "longer than the file" in message(b"{}", 2**62)
    assert "longer than the file" in message(b"{}", 3)
    assert "not JSON" in message(b'{"a":' + b"[" * 10**5)
    assert "twice" in message(b'{"a": {}, "a": {}}')
    assert "not JSON" in message(b'{"a": ' + b"9" * 5000 + b"}")


# --- Properties --------------------------------------------------------------------------------

WHOLE = {
    "w.safetensors": save({"a.weight": ROWS, "b.weight": ROWS.astype(np.float16)}),
    "zip.pth": zipped({"model": PLAIN, "model_ema": MORE, "epoch": 3}),
    "legacy.pth": legacy({"state_dict": PLAIN, "args": Call("argparse", "Namespace", state={})}),
}


def damaged(content, changes, cut):
    """A copy with some bytes changed, and cut off."""
    made = bytearray(content)
    for place, mask in changes:
        made[place % len(made)] ^= mask
    return bytes(made[: len(made) - cut % len(made)])


FLIPS = st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 255)), max_size=4)


@pytest.mark.parametrize("name", WHOLE)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=FLIPS, cut=st.one_of(st.just(0), st.integers(0, 2**31)))
def test_a_damaged_file_is_a_sentence_or_gives_arrays(tmp_path, name, changes, cut):
    path = tmp_path / name
    path.write_bytes(damaged(WHOLE[name], changes, cut))
    try:
        arrays = read_weights(path, say=lambda _: None)
    except UserError as error:
        said = str(error)
        arrays = {}
    else:
        said = str(path)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert sum(array.nbytes for array in arrays.values()) <= 4 * len(WHOLE[name])


def test_a_flipped_bit_of_a_tensor_in_an_archive_is_found(tmp_path):
    content = zipped(PLAIN)
    for place in range(content.index(ROWS.tobytes()), content.index(ROWS.tobytes()) + ROWS.nbytes):
        refusal(tmp_path, damaged(content, [(place, 1)], 0))
