"""Files of weights: `--init`, `import-weights` and `patterns` refuse the same ones."""

import json
import os
import struct
import zipfile

import numpy as np
from bad_input.row import Row
from helpers.torch_files import Call, legacy, tensor, zipped
from safetensors.numpy import save

ROWS_3 = np.arange(6, dtype=np.float32).reshape(2, 3)
PLAIN = {"a.weight": ROWS_3, "a.bias": ROWS_3[0]}
MODULE = Call("my.nets", "Net", state={"_parameters": {}, "_modules": {}})
HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,%d]}}'


def safetensors(header, data=bytes(8)):
    return struct.pack("<Q", len(header)) + header + data


def memo(protocol=2, index=2**32 - 1):
    """A pickle of a few bytes that asks for a memo of four billion places."""
    return bytes((0x80, protocol)) + b"Nr" + struct.pack("<I", index) + b"."


# name -> file, content, expected words: refused by whatever reads weights.
FILES = {
    "empty": ("w.pth", b"", "w.pth is empty"),
    "empty-safetensors": ("w.safetensors", b"", "is empty"),
    "noise": ("w.pth", b"\x00\x01noise", "is damaged, or no file of weights"),
    "text": ("w.bin", b"hello", "is damaged, or no file of weights"),
    "lfs": ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
    "lfs-safetensors": ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
    "page": ("w.pth", b"<!DOCTYPE html>\n<html>", "is a web page"),
    "page-safetensors": ("w.safetensors", b"<html><head>", "is a web page"),
    "json": ("w.pt", b'{"error": "not found"}', "is a text file"),
    "gzip": ("w.pth", b"\x1f\x8b\x08\x00", "gunzip"),
    "bzip2": ("w.ckpt", b"BZh91AY", "bunzip2"),
    "tar": ("w.pth.tar", bytes(257) + b"ustar\x0000" + bytes(300), "tar -xf"),
    "hdf5": ("w.bin", b"\x89HDF\r\n\x1a\n", "HDF5"),
    "npy": ("w.bin", b"\x93NUMPY\x01\x00", "NumPy array"),
    "npz": ("w.pt", zipped({}, root="r").replace(b"data.pkl", b"data.npy"), r"NumPy's \.npz"),
    "archive": ("w.pt", zipped({}, root="r").replace(b"data.pkl", b"data.txt"), "zip archive"),
    "cut-zip": ("w.pth", zipped(PLAIN)[:-30], "is damaged"),
    "cut-legacy": ("w.pth", legacy(PLAIN)[:-5], "cut off"),
    "compressed": ("w.pth", zipped(PLAIN, compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "bomb": (
        "w.pth", zipped({"a": np.zeros(10**6)}, compression=zipfile.ZIP_LZMA), "is compressed"
    ),
    "big-endian": ("w.pth", zipped(PLAIN, byteorder="big"), "byte order"),
    "script": ("w.pt", zipped(PLAIN, **{"code/a.py": ""}), "TorchScript"),
    "module": ("w.pth", zipped(MODULE), r"whole module \(my\.nets\.Net\)"),
    "module-legacy": ("w.pth", legacy({"model": MODULE}), r"whole module \(my\.nets\.Net\)"),
    "list": ("w.pth", zipped([ROWS_3]), "holds no state dict"),
    "tensor": ("w.pth", zipped(ROWS_3), "holds no state dict"),
    "metrics": ("w.ckpt", zipped({"epoch": 3, "accuracy": 0.5}), "only 'epoch', 'accuracy'"),
    "parts": ("w.ckpt", zipped({"generator": PLAIN, "critic": PLAIN}), "only 'generator'"),
    "several": ("w.ckpt", zipped({"net": PLAIN, "model": dict(PLAIN)}), "several sets of weights"),
    "int-key": ("w.pth", zipped({0: ROWS_3}), "one of its names is 0, not text"),
    "twice": ("w.pth", zipped({"a": ROWS_3, "module.a": ROWS_3}), "holds 'a' twice"),
    "sparse": ("w.pth", zipped({"a": Call("torch._utils", "_rebuild_sparse_tensor")}), "sparse"),
    "quantized": ("w.pth", zipped({"a": Call("torch._utils", "_rebuild_qtensor")}), "quantized"),
    "memo": ("w.pth", memo(), "is damaged|older format"),
    "memo-zip": ("w.pth", zipped((memo(), [])), "holds no state dict"),
    "bytes-of-a-terabyte": (
        "w.pth", zipped((b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", [])), "is damaged"
    ),
    "stride-0": ("w.pth", zipped({"a": tensor(ROWS_3, "0", (2**17, 2**16), (0, 0))}), "repeats"),
    "stride-negative": ("w.pth", zipped({"a": tensor(ROWS_3, "0", (2,), (-1,))}), "not possible"),
    "offset": ("w.pth", zipped({"a": tensor(ROWS_3, "0", (2,), (1,), 5)}), "beyond its memory"),
    "product": ("w.pth", zipped({"a": tensor(ROWS_3, "0", (2**62, 4), (0, 0))}), "repeats"),
    "deep": ("w.pth", zipped((b"\x80\x02" + b"]" + b"(" * 9999 + b".", [])), "is damaged"),
    "header-long": ("w.safetensors", struct.pack("<Q", 2**60) + b"{}", "longer than the file"),
    "header-text": ("w.safetensors", b"not safetensors at all", "does not begin with {"),
    "header-json": ("w.safetensors", safetensors(b'{"a":'), "is not JSON"),
    "header-deep": ("w.safetensors", safetensors(b'{"a":' + b"[" * 9999), "is not JSON"),
    "header-twice": ("w.safetensors", safetensors(b'{"a":{},"a":{}}'), "twice"),
    "header-place": ("w.safetensors", safetensors(HEADER % 4), "not as many bytes"),
    "header-cut": ("w.safetensors", safetensors(HEADER % 8, b""), "cut off"),
    "header-more": ("w.safetensors", safetensors(HEADER % 8, bytes(9)), "goes on after"),
    "header-type": (
        "w.safetensors", safetensors((HEADER % 8).replace(b"F32", b"F31")), "not understood"
    ),
    "upper-case": ("W.SAFETENSORS", b"nonsense", "W.SAFETENSORS is damaged"),
    "index-of-nothing": ("w.index.json", b"{}", "no index of weights"),
    "index-outside": (
        "w.index.json", json.dumps({"weight_map": {"a": "../w.pth"}}).encode(), "no file beside it"
    ),
    "index-missing": (
        "w.index.json", json.dumps({"weight_map": {"a": "x.pth"}}).encode(), r"no file .*x\.pth"
    ),
}  # fmt: skip
SCRIPTS = {"lfs", "memo-zip", "stride-0"}  # also through the installed command


def init(file, *more):
    return ["train", "--model", "vit_mini", "--epochs", "1", "--init", file, *more]


def imported(file, *more):
    return ["import-weights", file, "--model", "vit_mini", *more]


def patterns(file, *more):
    return ["patterns", file, *more]


def fifo(folder):
    os.mkfifo(folder / "w.pth")


def loop(folder):
    (folder / "w.pth").symlink_to("w.pth")


VIT = {"pos_embed": np.zeros((1, 65, 64), np.float32)}
OTHERS = [
    Row("missing", init("x.pth"), r"no file of weights at x\.pth", script=True),
    Row("missing-import", imported("x.pth"), r"no file of weights at x\.pth"),
    Row("missing-patterns", patterns("x.pth"), r"x\.pth does not exist"),
    Row("device", init("/dev/zero"), "/dev/zero is no regular file", script=True),
    Row("device-import", imported("/dev/zero"), "/dev/zero is no regular file"),
    Row("fifo", init("w.pth"), r"w\.pth is no regular file", prepare=fifo),
    Row("fifo-import", imported("w.pth"), r"w\.pth is no regular file", prepare=fifo),
    Row("loop", init("w.pth"), r"no file of weights at w\.pth", prepare=loop),
    Row("folder-import", imported("."), "is a folder; a file is expected there"),
    Row("suffix-patterns", patterns("w.txt"), "its name ends in none of", files={"w.txt": "x"}),
    Row("ema-of-nothing", ["train", "--init-ema"], "init_ema chooses among the weights of a file"),
    Row(
        "ema-safetensors", init("w.safetensors", "--init-ema"), "no average of them",
        files={"w.safetensors": save(PLAIN)},
    ),
    Row(
        "ema-missing", imported("w.pth", "--init-ema"), "holds no averaged weights",
        files={"w.pth": zipped({"model": PLAIN})},
    ),
    Row(
        "ema-missing-patterns", patterns("w.pth", "--init-ema"), "holds no averaged weights",
        files={"w.pth": zipped({"model": PLAIN})},
    ),
    Row("ema-folder", init(".", "--init-ema"), "is a folder of a run"),
    Row("unfitting", init("w.pth"), "do not fit ViT: missing: ", files={"w.pth": zipped(PLAIN)}),
    Row(
        "unfitting-import", imported("w.pth"), "unexpected: a.weight, a.bias",
        files={"w.pth": zipped(PLAIN)},
    ),
    Row(
        "no-floats", imported("w.pth"), r"not of floats: pos_embed \(int8\)",
        files={"w.pth": zipped({n: a.astype(np.int8) for n, a in VIT.items()})},
    ),
    Row(
        "two-prefixes", imported("w.pth"), "weights of several ViTs",
        files={"w.pth": zipped({f"{p}.{n}": a for n, a in VIT.items() for p in ("net", "model")})},
    ),
    Row(
        "complex-patterns", patterns("w.pth"), r"holds complex numbers \(a\.weight\)",
        files={"w.pth": zipped({"a.weight": ROWS_3.astype(np.complex64)})},
    ),
    Row(
        "no-layers-patterns", patterns("w.pth"), "holds no layers",
        files={"w.pth": zipped({"a.bias": ROWS_3[0]})},
    ),
    Row(
        "image-size-import", imported("w.pth", "--image-size", "0"), "image_size is 0",
        files={"w.pth": zipped(PLAIN)},
    ),
    Row(
        "exists-import", imported("w.pth", "--out", "here"), "exists already",
        files={"w.pth": zipped(PLAIN), "here/a": ""},
    ),
    Row("export-missing", ["export-weights", "nowhere"], "nowhere is not a run directory"),
]  # fmt: skip

ROWS = [
    Row(
        f"{case}-{command.__name__}", command(name), words, files={name: content},
        script=case in SCRIPTS and command is init,
    )
    for case, (name, content, words) in FILES.items()
    for command in (init, imported, patterns)
] + OTHERS  # fmt: skip
