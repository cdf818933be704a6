"""WeightWatcher's alphas alone against all of our figures, in turn, in one process.

    python tests/drills/patterns_speed.py     # needs weightwatcher==0.7.7 and PyTorch

prints the median of five rounds after one that does not count. Both get the same weights, which are
in memory before; ours come once in PyTorch's layout and once in Flax's.
"""

import contextlib
import io
import logging
import os
import statistics
import time
import warnings

import power_law_weights as made

from bocb_jax.patterns.spectra import analyze_weights

ROUNDS = 5


def as_flax(arrays):
    """The same weights with the output last, under Flax's names."""
    return {
        name.replace(".weight", ".kernel"): (
            array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        ).copy()
        for name, array in arrays.items()
    }


def main() -> None:
    """The command line."""
    import torch
    import weightwatcher

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(
        f"weightwatcher {weightwatcher.__version__}, PyTorch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, {len(os.sched_getaffinity(0))} cores"
    )
    for net in made.NETS:
        arrays = made.weights(net)
        flax = as_flax(arrays)
        watcher = weightwatcher.WeightWatcher(model=made.torch_model(net))
        calls = {
            "weightwatcher, alpha": watcher.analyze,
            "ours, all figures": lambda arrays=arrays: analyze_weights(arrays),
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
