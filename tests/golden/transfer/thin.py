"""Make retinanet_mmdet_*.npz and vitdet_pyramid.npz from the whole golden files.

The whole files were made by running MMDetection 2.26.0 and a copy of detectron2's pyramid in torch
1.13.1. Here lies what the tests compare: of the largest maps a part of the channels.

    python thin.py FOLDER_OF_THE_WHOLE_FILES
"""

import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
WHOLE_NET = ("net_", "names", "shapes", "seed", "num_classes", "gt", "labels")


def thin(folder):
    mmdet = np.load(folder / "retinanet_mmdet.npz")
    net = {key: mmdet[key] for key in mmdet.files if key.startswith(WHOLE_NET)}
    net["net_cls0"], net["net_reg0"] = net["net_cls0"][:, ::3], net["net_reg0"][:, ::3]
    yield "retinanet_mmdet_net", net
    own = ("net_", "names", "shapes")
    yield "retinanet_mmdet_rules", {k: mmdet[k] for k in mmdet.files if not k.startswith(own)}
    vitdet = dict(np.load(folder / "vitdet_pyramid.npz"))
    vitdet["simfp_2"] = vitdet["simfp_2"][:, ::4]
    yield "vitdet_pyramid", vitdet


if __name__ == "__main__":
    for name, arrays in thin(pathlib.Path(sys.argv[1])):
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
