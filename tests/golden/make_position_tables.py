"""Make position_tables.npz: tables as timm resizes them. Needs torch and timm; made with 1.0.31."""

import pathlib

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

GRIDS = [(14, 24), (14, 8), (2, 4), (7, 3)]  # old and new side, one class token before
WINDOWS = [(7, 12), (7, 4), (8, 7), (2, 3), (7, 1)]


def make() -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for old, new in GRIDS:
        table = torch.randn(1, 1 + old**2, 3, generator=generator)
        made[f"absolute_{old}_{new}_given"] = table.numpy()
        made[f"absolute_{old}_{new}"] = resample_abs_pos_embed(table, [new, new]).numpy()
    for old, new in WINDOWS:
        table = torch.randn((2 * old - 1) ** 2, 2, generator=generator)
        shape = ((2 * new - 1) ** 2, 2)
        made[f"relative_{old}_{new}_given"] = table.numpy()
        made[f"relative_{old}_{new}"] = resize_rel_pos_bias_table(table, (new, new), shape).numpy()
    return made


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("position_tables.npz"), **make())
