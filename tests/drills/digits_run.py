"""Train two small backbones on the digits with every optimizer at its own defaults.

    python tests/drills/digits_run.py --workdir runs/digits

One run after another, about a minute each on one core; the same command resumes a stopped one.
The test accuracies are written to bocb_jax/optim/digits_accuracy.csv, from which
`bocb optimizers NAME` shows them.
"""

import argparse
import csv
import datetime
import importlib.metadata

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.optim import digits_accuracy, list_optimizers
from bocb_jax.train import train

MODELS = ("vit_mini", "resnet_mini")
# Small batches and images: some thousand updates within a minute. Learning rate, weight decay and
# schedule are the optimizer's own.
SETTINGS = {"epochs": 40, "batch_size": 16, "image_size": 16}


def accuracy(model: str, opt: str, **settings: object) -> str:
    """Return the test accuracy in percent after training, or "diverged"."""
    config = {
        "model": model,
        "opt": opt,
        **SETTINGS,
        "parallel": {"devices": 1},
        "log": {"progress": "none", "evaluate_every_epochs": SETTINGS["epochs"]},
        **settings,
    }
    outcome = train(from_dict(TrainConfig, config))
    return f"{100 * outcome['test_accuracy']:.1f}" if "test_accuracy" in outcome else "diverged"


def header() -> list[str]:
    """Return the lines of comment that say how the file was made."""
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    return [
        "Test accuracy on the digits in percent, with the defaults of each optimizer;",
        "empty where it was not measured.",
        f"Made by `python tests/drills/digits_run.py` on {datetime.date.today()}: {settings}, "
        "seed 0,",
        f"on a CPU with {', '.join(versions)}.",
    ]


def write(found: dict[tuple[str, str], str]) -> None:
    """Write the table from (model, optimizer) -> accuracy."""
    with open(digits_accuracy.FILE, "w", newline="") as file:
        file.writelines(f"# {line}\n" for line in header())
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["optimizer", *MODELS])
        for name in list_optimizers():
            rows.writerow([name, *(found.get((model, name), "") for model in MODELS)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--compile-cache")
    options = vars(parser.parse_args(arguments))
    found = {}
    for model in MODELS:
        for name in list_optimizers():
            found[model, name] = accuracy(model, name, **options)
            print(f"{model:12} {name:20} {found[model, name]}", flush=True)
    write(found)
    print(f"wrote {digits_accuracy.FILE}")


if __name__ == "__main__":
    main()
