"""Data sets by name: registered ones, import paths and unknown names."""

import numpy as np
import pytest

from bocb_jax.data import DATASETS, from_arrays, open_dataset, register_dataset
from bocb_jax.errors import UnknownName, UserError


def test_a_registered_data_set(monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("own")
    def own(options):
        images = np.zeros((20, 4, 4, 3), np.uint8)
        return from_arrays("own", images, np.arange(20) % 4, split_seed=options.split_seed)

    assert open_dataset("own").num_classes == 4
    assert "own" in DATASETS.names()
    with pytest.raises(UserError, match="registered already"):
        register_dataset("own")(own)


def test_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from bocb_jax.data import from_arrays\n"
        "def opener(options):\n"
        "    return from_arrays('mine', np.zeros((9, 4, 4), np.uint8), np.arange(9) % 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert open_dataset("mine:opener").num_classes == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("digit", "Did you mean digits"), ("cifar-10", "cifar10"), ("nothing:here", "nothing")],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownName, match=message):
        open_dataset(name)
