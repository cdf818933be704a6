"""Weights with power laws in their spectra, in the shapes of ResNet-50 and ViT-S.

    python tests/helpers/power_law_weights.py  # needs weightwatcher==0.7.7, powerlaw and PyTorch

writes the golden file tests/golden/patterns_alpha.json: WeightWatcher's alpha, xmin, distance and
stable rank of every layer, and for some the alpha of the package powerlaw on the same eigenvalues.
The weights are not trained: rows of Gaussian matrices are scaled by draws from a Pareto
distribution whose exponent differs between layers. NumPy's generators give the same draws on every
machine.
"""

import importlib.metadata
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "patterns_alpha.json"


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the 54 layers of torchvision's resnet50."""
    shapes = {"conv1": (64, 3, 7, 7)}
    into = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (width, into, 1, 1)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            shapes[f"{name}.conv3"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{name}.downsample.0"] = (4 * width, into, 1, 1)
            into = 4 * width
    return shapes | {"fc": (1000, 2048)}


def vit_s_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the 50 layers of timm's vit_small_patch16_224."""
    shapes = {"patch_embed.proj": (384, 3, 16, 16)}
    for block in range(12):
        shapes[f"blocks.{block}.attn.qkv"] = (1152, 384)
        shapes[f"blocks.{block}.attn.proj"] = (384, 384)
        shapes[f"blocks.{block}.mlp.fc1"] = (1536, 384)
        shapes[f"blocks.{block}.mlp.fc2"] = (384, 1536)
    return shapes | {"head": (1000, 384)}


NETS = {"resnet50": resnet50_shapes, "vit_s": vit_s_shapes}


def weights(net: str) -> dict[str, np.ndarray]:
    """Return float32 arrays in PyTorch's layout, by PyTorch's names."""
    made = {}
    for number, (name, shape) in enumerate(NETS[net]().items()):
        generator = np.random.default_rng([7, len(net), number])
        # Eigenvalues grow with the square of the scale: alpha is about 1 + exponent / 2.
        exponent = np.exp(generator.uniform(np.log(1.2), np.log(24)))
        scale = 1 + generator.pareto(exponent, (shape[0],) + (1,) * (len(shape) - 1))
        fan_in = np.prod(shape[1:])
        array = generator.normal(size=shape) * scale / np.sqrt(fan_in)
        made[f"{name}.weight"] = array.astype(np.float32)
    return made


def torch_model(net: str) -> "torch.nn.Module":
    """Return a model with these weights for WeightWatcher to analyze."""
    import torch

    root = torch.nn.Module()
    for name, array in weights(net).items():
        *owners, last = name.removesuffix(".weight").split(".")
        owner = root
        for part in owners:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner._modules[part]
        if array.ndim == 4:
            layer = torch.nn.Conv2d(array.shape[1], len(array), array.shape[2:], bias=False)
        else:
            layer = torch.nn.Linear(array.shape[1], len(array), bias=False)
        layer.weight.data = torch.from_numpy(array)
        owner.add_module(last, layer)
    return root


def main() -> None:
    """Write the golden file."""
    import powerlaw
    import weightwatcher

    logging.disable(logging.WARNING)
    versions = {name: importlib.metadata.version(name) for name in ("weightwatcher", "powerlaw")}
    golden: dict[str, dict] = {"versions": versions}
    for net in NETS:
        watcher = weightwatcher.WeightWatcher(model=torch_model(net))
        details = watcher.analyze().set_index("longname")
        golden[net] = {}
        for number, name in enumerate(NETS[net]()):
            row = details.loc[name]
            golden[net][name] = [float(row[c]) for c in ("alpha", "xmin", "D", "stable_rank")]
            if number % 9 == 1:  # powerlaw is slow
                evals = watcher.get_ESD(layer=int(row["layer_id"]))
                fit = powerlaw.Fit(evals[evals > 1e-5], xmax=None, verbose=False)
                golden[net][name].append(float(fit.power_law.alpha))
        alphas = [figures[0] for figures in golden[net].values()]
        print(net, len(alphas), min(alphas), max(alphas), file=sys.stderr)
    GOLDEN.write_text(json.dumps(golden, indent=1).replace("\n   ", " ") + "\n")


if __name__ == "__main__":
    main()
