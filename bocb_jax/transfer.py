"""Train a detector or a pose net: `python -m bocb_jax.transfer --task detection --opt adamw`.

    bocb transfer --task detection --model resnet50 --init resnet50.pth --data coco:~/coco
    bocb transfer --task pose --model swin_t --init runs/RUN --opt adam --data coco:~/coco

RetinaNet or SimpleBaseline is put around the backbone and trained as `bocb train` trains a
classifier: with the same settings, run directories, checkpoints and exit codes. Without `--data` a
set of stick figures and shapes is drawn; without `--init` all weights are random.
"""

import sys
from typing import Any

from bocb_jax import train
from bocb_jax.checked import check, read_toml
from bocb_jax.command_line import Parser
from bocb_jax.config import TrainConfig

# What a run uses that names only its task: nets that learn the drawn data in minutes on two cores.
DEFAULTS: dict[str, dict[str, Any]] = {
    "detection": {"model": "resnet_mini", "opt": "adamw"},
    "pose": {"model": "resnet_mini", "opt": "adam"},
}


def main(arguments: list[str]) -> int:
    """Train the run that the command line asks for, and return the exit code."""
    return train.start(parse(arguments))


def parse(arguments: list[str]) -> TrainConfig:
    """Return the config of command-line arguments; `--data` is another word for `--dataset`.

    Raises:
      UserError: the file of `--config` cannot be read, or is of a classifier.
    """
    arguments = [_dataset_flag(word) for word in arguments]
    before = Parser(prog="bocb transfer", add_help=False, allow_abbrev=False)
    before.add_argument("--task", choices=list(DEFAULTS))
    before.add_argument("--config")
    known, _ = before.parse_known_args(arguments)
    given = {} if known.config is None else read_toml(known.config, "config")
    task = known.task or given.get("task", "detection")
    rule = f"{' or '.join(DEFAULTS)}; bocb train trains classifiers"
    check(task in list(DEFAULTS), "task", task, rule)
    return train.parse(arguments, "bocb transfer", {"task": task, **DEFAULTS[task]})


def _dataset_flag(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"--dataset{equals}{value}" if flag == "--data" else word


if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
