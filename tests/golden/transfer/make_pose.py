"""Cut `pose.npz` out of the whole file of golden figures: the maps of the nets are thinned out.

python make_pose.py pose_mmpose.npz
"""

import sys
from pathlib import Path

import numpy as np

THINNED = {
    "net_eval": np.s_[:, :, ::8, ::4],
    "net_fliptest": np.s_[:, :, ::8, ::4],
    "net_train": np.s_[:, :, ::8, ::4],
    "crop0": np.s_[::5, ::3],
    "crop2": np.s_[::5, ::3],
}

whole = np.load(sys.argv[1])
kept = {name: whole[name][THINNED.get(name, ...)] for name in whole if name != "decode_in_note"}
kept |= {f"{name}_std": np.float64(whole[name].std()) for name in THINNED if "net" in name}
np.savez_compressed(Path(__file__).with_name("pose.npz"), **kept)
