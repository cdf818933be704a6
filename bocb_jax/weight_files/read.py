"""Reading of weights from files: which format it is, and which of its weights are wanted."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.storage.files import check_regular, is_plain_name
from bocb_jax.weight_files import formats
from bocb_jax.weight_files.formats import Arrays
from bocb_jax.weight_files.torch_pickle import MAX_BYTES, NotWeights, Object, OtherTensor, Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
INDEX = ".index.json"  # of weights in several files

# Where training scripts keep the weights of their checkpoints, and the averages of them.
CONTAINERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "module",
)  # fmt: skip
AVERAGES = (
    "model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model", "model_ema_state_dict",
    "params_ema",
)  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile

# How files begin that are given by mistake.
_OTHERS = {
    b"version https://git-lfs": "is a pointer to a file in Git LFS; fetch that with `git lfs pull`",
    b"<!doctype": "is a web page, not a file of weights; download the file itself",
    b"<html": "is a web page, not a file of weights; download the file itself",
    b"<?xml": "is an XML page, often an error of a download; download the file itself",
    b"\x1f\x8b": "is compressed with gzip; unpack it first (gunzip)",
    b"bzh": "is compressed with bzip2; unpack it first (bunzip2)",
    b"\xfd7zxz": "is compressed with xz; unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first (unzstd)",
    b"7z\xbc\xaf": "is a 7z archive; unpack it first",
    b"rar!": "is a RAR archive; unpack it first",
    b"\x89hdf": "is an HDF5 file, as Keras writes; give PyTorch's or a .safetensors file",
    b"\x93numpy": "is one NumPy array without a name; give a .pth or .safetensors file",
    b"gguf": "is a GGUF file; give the .safetensors file it was made of",
}

_ONE_SET = "holds one set of weights and no average of them; omit --init-ema"

Say = Callable[[str], None]


def is_weight_file(path: Path) -> bool:
    """Whether the name of a file ends as those of weights do, in lower or upper case."""
    return path.name.lower().endswith((*SUFFIXES, INDEX))


def keeps_order(path: Path) -> bool:
    """Whether the arrays of a file come in the order of the network, as in a state dict."""
    return not path.name.lower().endswith((".safetensors", INDEX))


def warn(text: str) -> None:
    """Say something to a user of the Python interface."""
    warnings.warn(text, stacklevel=3)


def read_weights(path: str | PathLike[str], *, ema: bool = False, say: Say = warn) -> Arrays:
    """Read a `.safetensors`, `.pth`, `.pt`, `.bin` or `.ckpt` file, without PyTorch.

    The content decides about the format, not the name. A training checkpoint gives what lies under
    "state_dict", "model" or the like. The prefixes "module." and "_orig_mod." of names are removed.
    A `.pth` file is a pickle, but nothing in it is executed: tensors and plain containers are read.

    Args:
      path: the file, or the `.index.json` of weights in several files.
      ema: take the averaged weights of a checkpoint that holds both.
      say: called with a sentence where there was a choice.

    Returns:
      Arrays by name, for `load_torch_weights`.

    Raises:
      UserError: the file does not exist, is damaged, or holds no weights, or several sets of them.
    """
    path = Path(path).expanduser()
    _check_file(path)
    try:
        if path.name.lower().endswith(INDEX):
            arrays = _read_shards(path, ema)
        else:
            arrays = _read_file(path, ema, say)
        return _unwrapped(arrays)
    except UserError:
        raise
    except NotWeights as problem:
        raise UserError(f"{path} {problem}.") from problem
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise UserError(
            f"{path} is damaged and cannot be read as weights ({type(error).__name__}: "
            f"{str(error)[:200]}); fetch or save it again."
        ) from error


def _check_file(path: Path) -> None:
    """Raise unless a path is that of a regular file."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"There is no file of weights at {path}.") from error
    check_regular(path, status)


def _read_file(path: Path, ema: bool, say: Say) -> Arrays:
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        named = path.name.lower().endswith(".safetensors")
        # A length in eight bytes, then JSON: no pickle, archive or text has so many zeros there.
        if head[8:9] == b"{" and (named or head[4:8] == bytes(4)):
            if ema:
                raise NotWeights(_ONE_SET)
            return formats.read_safetensors(file)
        _check_beginning(head)
        if named:
            raise NotWeights("is damaged, or no safetensors file: its header does not begin with {")
        zipped = head.startswith(b"PK")
        found, memory = (formats.open_torch_zip if zipped else formats.open_torch_legacy)(file)
        tensors = _chosen(found, ema, lambda text: say(f"{path}: {text}"))
        return formats.torch_arrays(tensors, memory, formats.size_of(file))


def _check_beginning(head: bytes) -> None:
    """Raise if a file is empty, or begins as files do that hold no weights."""
    if not head:
        raise NotWeights("is empty; fetch or save it again")
    begin = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, words in _OTHERS.items():
        if begin.startswith(mark):
            raise NotWeights(words)
    if head[257:262] == b"ustar":
        raise NotWeights("is a tar archive; unpack it first (tar -xf)")
    if begin.startswith(b"{"):
        raise NotWeights("is a text file (JSON), not a file of weights")


def _read_shards(path: Path, ema: bool) -> Arrays:
    """Read the files that an index names; they lie beside it."""
    if ema:
        raise NotWeights(_ONE_SET)
    arrays: Arrays = {}
    for shard in _shards(path):
        _check_file(shard)
        try:
            part = _read_file(shard, False, lambda _: None)
        except NotWeights as problem:
            raise NotWeights(f"names {shard.name}, which {problem}") from problem
        twice = sorted(arrays.keys() & part.keys())
        if twice:
            raise NotWeights(f"names files that hold {twice[0]!r:.100} twice")
        arrays |= part
    return arrays


def files_of(index: Path) -> list[Path]:
    """Return the files that an index of weights names; none if it is no such index."""
    try:
        return _shards(index) if index.name.lower().endswith(INDEX) else []
    except NotWeights:
        return []


def _shards(path: Path) -> list[Path]:
    """Return the files that an index of weights names.

    Raises:
      NotWeights: it is no such index, or names files in other folders.
    """
    with path.open("rb") as file:
        text = file.read(MAX_BYTES)
    try:
        names = sorted(set(json.loads(text.decode("utf-8-sig"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotWeights('is no index of weights: it has no "weight_map" of files') from error
    for name in names:
        is_beside = isinstance(name, str) and is_plain_name(name)
        if not is_beside or name.lower().endswith(INDEX):
            raise NotWeights(f"names {name!r:.100}, which is no file beside it")
    return [path.with_name(name) for name in names]


# --- What a checkpoint holds -------------------------------------------------------------------


def _chosen(found: Any, ema: bool, say: Say) -> dict[str, Tensor | OtherTensor]:
    """Return the tensors of the state dict that is wanted.

    Args:
      found: content of the file.
      ema: whether averaged weights are wanted.
      say: called with a clause where there was a choice.
    """
    plain, averages = list(_sets(found, CONTAINERS)), list(_sets(found, AVERAGES))
    if ema and not averages:
        raise NotWeights(
            f"holds no averaged weights, under none of {', '.join(AVERAGES)}; omit --init-ema"
        )
    only = not plain and bool(averages) and not _has_tensors(found)
    wanted = averages if ema or only else plain
    if len({id(content) for _, content in wanted}) > 1:
        names = " and ".join(name for name, _ in wanted)
        raise NotWeights(f"holds several sets of weights, {names}; save the one you want alone")
    chosen = wanted[0][1] if wanted else found
    if not _has_tensors(chosen):
        raise NotWeights(_without_tensors(chosen))
    if only and not ema:
        say(f"it holds no weights but averaged ones, under '{averages[0][0]}'; those are taken.")
    elif ema:
        say(f"the averaged weights under '{averages[0][0]}' are taken.")
    elif averages:
        where = f"under '{plain[0][0]}' " if plain else ""
        say(f"the weights {where}are taken; --init-ema takes the averages in '{averages[0][0]}'.")
    strange = [name for name in chosen if not isinstance(name, str)]
    if strange:
        raise NotWeights(
            f"is no state dict: one of its names is {strange[0]!r:.40}, not text; save "
            "model.state_dict()"
        )
    return {name: v for name, v in chosen.items() if isinstance(v, Tensor | OtherTensor)}


def _sets(found: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield (name, state dict) of what a checkpoint holds under some names."""
    if not isinstance(found, Mapping):
        return
    for name in names:
        inner = found.get(name)
        # One level more, as {"model": {"state_dict": ...}}.
        for _ in range(2):
            deeper = [
                inner[key]
                for key in (*CONTAINERS, *AVERAGES)
                if isinstance(inner, Mapping) and _has_tensors(inner.get(key))
            ]
            if len(deeper) == 1 and not _has_tensors(inner):
                inner = deeper[0]
        if _has_tensors(inner) or _is_module(inner):
            yield name, inner


def _has_tensors(found: Any) -> bool:
    return isinstance(found, Mapping) and any(
        isinstance(value, Tensor | OtherTensor) for value in found.values()
    )


def _is_module(found: Any) -> bool:
    return (
        isinstance(found, Object)
        and isinstance(found.state, Mapping)
        and {"_parameters", "_modules"} <= found.state.keys()
    )


def _without_tensors(found: Any) -> str:
    """Say what is in a checkpoint that holds no state dict."""
    if _is_module(found):
        return (
            f"holds a whole module ({found.kind}), and its class is not imported here; in PyTorch, "
            "save its weights: torch.save(model.state_dict(), NEW_FILE)"
        )
    words = "holds no state dict: there are no tensors with names in it"
    if isinstance(found, Mapping) and found:
        keys = [f"{key!r:.40}" for key in list(found)[:8] if isinstance(key, str | int)]
        words += f", only {', '.join(keys)}" + (" and more" if len(found) > 8 else "")
    return f"{words}; save model.state_dict()"


def _unwrapped(arrays: Arrays) -> Arrays:
    """Return arrays by their names without the prefixes of wrappers."""
    made: Arrays = {}
    for name, array in arrays.items():
        short = name.replace("._orig_mod.", ".")
        while short.startswith(_WRAPPERS):
            short = short.partition(".")[2]
        if short in made:
            raise NotWeights(f"holds {short!r:.100} twice, with and without a wrapper's prefix")
        made[short] = array
    return made
