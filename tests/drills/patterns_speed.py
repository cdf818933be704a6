"""Time of WeightWatcher's alpha alone against all of our metrics, alternating in one process.

    PYTHONPATH=tests python tests/drills/patterns_speed.py  # needs weightwatcher==0.7.7 and PyTorch

prints medians of five rounds, after a first one that does not count. Both get the same weights from
memory; ours are measured in PyTorch's layout and in Flax's.
"""

import contextlib
import io
import logging
import os
import statistics
import time
import warnings

import numpy as np
from helpers import power_law_weights

from bocb_jax.patterns.spectra import analyze_weights

ROUNDS = 5


def as_flax(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same weights with the output axis last, under Flax's names."""
    return {
        name.replace(".weight", ".kernel"): (
            array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        ).copy()
        for name, array in arrays.items()
    }


def main() -> None:
    """Print the times."""
    import torch
    import weightwatcher

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(
        f"weightwatcher {weightwatcher.__version__}, PyTorch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, {len(os.sched_getaffinity(0))} cores"
    )
    for net in power_law_weights.NETS:
        arrays = power_law_weights.weights(net)
        flax = as_flax(arrays)
        watcher = weightwatcher.WeightWatcher(model=power_law_weights.torch_model(net))
        calls = {
            "weightwatcher, alpha": watcher.analyze,
            "ours, all metrics": lambda arrays=arrays: analyze_weights(arrays),
            "ours, Flax's layout": lambda arrays=flax: analyze_weights(arrays),
        }
        seconds = {name: [] for name in calls}
        for turn in range(ROUNDS + 1):
            for name, call in calls.items():
                with contextlib.redirect_stdout(io.StringIO()):
                    start = time.perf_counter()
                    call()
                    took = time.perf_counter() - start
                if turn:
                    seconds[name].append(took)
        reference = statistics.median(seconds["weightwatcher, alpha"])
        print(f"{net}, {len(arrays)} layers")
        for name, found in seconds.items():
            median = statistics.median(found)
            spread = f"{min(found):.3f} to {max(found):.3f}"
            print(f"  {name:22} {median:.3f} s ({spread}), {reference / median:.1f} times as fast")


if __name__ == "__main__":
    main()
