"""The names of a study looked up, and its settings tried out, in a process of its own.

What a name stands for is known to the tables of backbones and optimizers, which load JAX; the sweep
itself must not, since its workers want the devices. `look_up` starts `python -m
bocb_jax.study.resolve`, which reads a study and prints a `Catalog`, both as JSON.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bocb_jax.config import DataConfig, TrainConfig, from_dict
from bocb_jax.errors import UserError
from bocb_jax.study.spec import Study, study_from_dict


@dataclasses.dataclass(frozen=True)
class Pair:
    """One backbone, in one variant, with one optimizer: a cell of the table."""

    backbone: str
    optimizer: str
    variant: str
    category: str  # of the optimizer
    settings: dict[str, Any]  # of `TrainConfig`, but for what the search and the study decide
    center: tuple[float, float]  # usual learning rate and weight decay of the optimizer
    published: tuple[float, float] | None  # the paper's tuned ones
    published_for: str  # the backbone that these were published for
    epochs: int  # of a run at full length
    images: int  # that it trains on
    parameters: int
    macs: int  # multiply-accumulates of one image, forward
    has_data: bool  # whether the data set is on this machine
    state_per_parameter: float  # numbers that the optimizer keeps

    @property
    def label(self) -> str:
        """What the tables call the backbone."""
        return f"{self.backbone} ({self.variant})" if self.variant else self.backbone


def look_up(study: Study, *, stand_in: bool = False) -> list[Pair]:
    """Every pair of a study, in its order.

    Args:
      study: the study.
      stand_in: whether the published size of a data set will do where it is not on this machine.

    Raises:
      UserError: a name is unknown, a pattern matches nothing, or settings do not go together.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "bocb_jax.study.resolve", *["--stand-in"] * stand_in],
        input=json.dumps(study.to_dict()),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    if answer.returncode:
        raise UserError(answer.stdout.strip() or "The study cannot be looked up; see above.")
    return [_pair(pair) for pair in json.loads(answer.stdout)]


def _pair(fields: dict[str, Any]) -> Pair:
    lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return Pair(**fields | lists)


# --- In the process of its own --------------------------------------------------------------------


def main() -> int:
    """Reads a study from stdin and prints its pairs."""
    settings = json.load(sys.stdin)
    try:
        pairs = find_pairs(study_from_dict(settings), stand_in="--stand-in" in sys.argv)
    except UserError as error:
        print(error)
        return error.exit_code
    json.dump([dataclasses.asdict(pair) for pair in pairs], sys.stdout)
    return 0


def find_pairs(study: Study, *, stand_in: bool = False) -> list[Pair]:
    """See `look_up`; loads JAX."""
    optimizers = _expand(study.optimizers, _optimizers, "optimizers")
    backbones = _expand(study.backbones, _backbones, "backbones")
    stray = ", ".join(sorted(set(study.opt_args) - set(optimizers)))
    if stray:
        raise UserError(f"opt_args names {stray}, which is not among the study's optimizers.")
    pairs = []
    for variant in study.variants:
        chosen = backbones
        if variant.backbones:
            chosen = _expand(variant.backbones, _backbones, f"variant {variant.name}")
            stray = ", ".join(sorted(set(chosen) - set(backbones)))
            if stray:
                raise UserError(
                    f"The variant {variant.name!r} names {stray}, which is not among the study's "
                    "backbones."
                )
        for backbone in chosen:
            settings = _merged(study.train, variant.train)
            size = _size(backbone, settings, stand_in)
            for optimizer in optimizers:
                found = _optimizer(study, backbone, optimizer)
                own = study.opt_args.get(optimizer)
                pairs.append(
                    Pair(
                        backbone=backbone,
                        optimizer=optimizer,
                        variant=variant.name,
                        settings={**settings, "opt_args": own} if own else settings,
                        **size,
                        **found,
                    )
                )
    return pairs


def _expand(patterns: tuple[str, ...], find: Callable[[str], list[str]], what: str) -> list[str]:
    names: dict[str, None] = {}
    for pattern in patterns:
        found = find(pattern)
        if not found:
            raise UserError(f"{what}: nothing matches '{pattern}'.")
        names |= dict.fromkeys(found)
    return list(names)


def _backbones(pattern: str) -> list[str]:
    from bocb_jax import paper
    from bocb_jax.models.factory import MODELS

    if pattern == "paper":
        return paper.backbones()
    if set(pattern) & set("*?["):
        return MODELS.names(pattern)
    MODELS.get(pattern)
    return [MODELS.canonical(pattern)]


def _optimizers(pattern: str) -> list[str]:
    from bocb_jax import optim, paper

    if pattern == "paper":
        return paper.optimizers()
    if pattern.startswith("category:"):
        of_paper = paper.optimizers()
        later = [name for name in optim.list_optimizers() if name not in of_paper]
        category = pattern.partition(":")[2]
        return [n for n in (*of_paper, *later) if optim.optimizer_info(n).category == category]
    if set(pattern) & set("*?["):
        return optim.list_optimizers(pattern)
    optim.optimizer_info(pattern)
    return [pattern]


def _size(backbone: str, settings: dict[str, Any], stand_in: bool) -> dict[str, Any]:
    """How large a run of a backbone is; settings that do not go together are found here."""
    import jax
    from flax import nnx

    from bocb_jax.build import build_model, program_spec
    from bocb_jax.data.pipeline import steps_per_epoch
    from bocb_jax.models.macs import count_macs
    from bocb_jax.resolve import resolve

    config = from_dict(TrainConfig, {**settings, "model": backbone, "opt": "sgd"})
    dataset, has_data = _dataset(
        config.dataset, config.data, config.on_corrupt, config.protocol, stand_in
    )
    resolved = resolve(config, dataset)
    epoch = steps_per_epoch(len(dataset.splits["train"]), resolved.batch_size)
    spec = program_spec(config, resolved, dataset, epoch)
    try:
        model = nnx.eval_shape(lambda: build_model(spec, nnx.Rngs(0)))
        macs = count_macs(model, spec.image_size)  # finds images that are too small as well
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{backbone} cannot take images of {spec.image_size} pixels: {error}"
        ) from error
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return {
        "epochs": resolved.epochs,
        "images": resolved.epochs * epoch * resolved.batch_size,
        "parameters": sum(leaf.size for leaf in leaves),
        "macs": macs,
        "has_data": has_data,
    }


@functools.cache
def _dataset(name: str, data: DataConfig, on_corrupt: str, protocol: str, stand_in: bool):
    from bocb_jax.data.registry import open_dataset
    from bocb_jax.data.synthetic import open_or_synthetic

    options = {"split_seed": data.split_seed, "data_dir": data.dir, "on_corrupt": on_corrupt}
    if stand_in:
        dataset, is_real = open_or_synthetic(name, **options)
    else:
        dataset, is_real = open_dataset(name, **options), True
    return dataset.tuned_on_test() if protocol == "paper" else dataset, is_real


def _optimizer(study: Study, backbone: str, optimizer: str) -> dict[str, Any]:
    """What a pair has from the optimizer's row and from the paper."""
    from bocb_jax import optim, paper
    from bocb_jax.optim.bounds import check_hyperparameters

    row = optim.optimizer_info(optimizer)
    check_hyperparameters(optimizer, row.hyperparameters, study.opt_args.get(optimizer, {}))
    rate, decay = row.search_center
    if study.search.kind == "around":  # as the paper searched: from its most frequent values
        rate = (*row.paper_learning_rate, rate)[0]
        decay = (*row.paper_weight_decay, decay)[0]
    tuned = paper.tuned(backbone, optimizer)
    return {
        "category": row.category,
        "state_per_parameter": row.state_per_parameter,
        "center": (rate, decay),
        "published": (tuned.learning_rate, tuned.weight_decay) if tuned else None,
        "published_for": tuned.backbone if tuned else "",
    }


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, table by table."""
    merged = dict(base)
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


if __name__ == "__main__":
    sys.exit(main())
