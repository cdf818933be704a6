"""The names in a study resolved to pairs of backbone and optimizer, in a process of its own.

What a name stands for is known to the registries of backbones and optimizers, which load JAX. The
sweep itself must not, since its workers want the devices. So `resolve_study` starts `python -m
bocb_jax.study.resolve`, which reads a study and prints {"pairs": ...} or {"error": ...}, as JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.errors import UserError
from bocb_jax.study.pretrained import Weights, find_weights
from bocb_jax.study.spec import Study, study_from_dict

if TYPE_CHECKING:
    from bocb_jax.build import ProgramSpec
    from bocb_jax.resolve import ResolvedConfig


@dataclasses.dataclass(frozen=True)
class Pair:
    """One backbone, in one variant, with one optimizer: a cell of the table."""

    backbone: str
    optimizer: str
    variant: str  # empty for the backbone as it is
    category: str  # of the optimizer
    train: dict[str, Any]  # settings of `TrainConfig` from the study, its variant and opt_args
    center: tuple[float, float]  # usual learning rate and weight decay of the optimizer
    tuned: tuple[float, float] | None  # the paper's
    epochs: int  # of a run at full length
    images: int  # that such a run trains on
    num_params: int
    macs: int  # multiply-accumulates of one image, forward
    has_data: bool  # whether the data set is on this machine
    state_per_parameter: float  # numbers that the optimizer keeps per parameter
    inits: tuple[str, ...] = ()  # weights that the final runs start from in turn; none: `train`'s

    @property
    def label(self) -> str:
        """What tables call the backbone."""
        return f"{self.backbone} ({self.variant})" if self.variant else self.backbone


def resolve_study(study: Study, *, stand_in: bool = False) -> list[Pair]:
    """Return every pair of a study, in its order.

    Args:
      study: the study.
      stand_in: whether the published size of a data set may stand in for one not on this machine.

    Raises:
      UserError: a name is unknown, a pattern matches nothing, or settings do not go together.
    """
    process = subprocess.run(
        [sys.executable, "-m", "bocb_jax.study.resolve", *["--stand-in"] * stand_in],
        input=json.dumps(study.to_dict()),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    if process.returncode:
        raise UserError("The names of the study cannot be resolved; the error is above.")
    answer = json.loads(process.stdout)
    if "error" in answer:
        raise UserError(answer["error"])
    return [_pair(fields) for fields in answer["pairs"]]


def _pair(fields: dict[str, Any]) -> Pair:
    tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Pair(**fields | tuples)


# --- In the process of its own --------------------------------------------------------------------


def main() -> None:
    """Read a study from stdin and print its pairs."""
    study = json.load(sys.stdin)
    try:
        pairs = find_pairs(study_from_dict(study), stand_in="--stand-in" in sys.argv)
    except UserError as error:
        json.dump({"error": str(error)}, sys.stdout)
    else:
        json.dump({"pairs": [dataclasses.asdict(pair) for pair in pairs]}, sys.stdout)


def find_pairs(study: Study, *, stand_in: bool = False) -> list[Pair]:
    """Do what `resolve_study` does, in this process; loads JAX."""
    optimizers = _expand(study.optimizers, _optimizers, "optimizers")
    backbones = _expand(study.backbones, _backbones, "backbones")
    stray = ", ".join(sorted(set(study.opt_args) - set(optimizers)))
    if stray:
        raise UserError(f"opt_args names {stray}, which is not among the study's optimizers.")
    trained_by = _expand(study.pretrained.optimizers, _optimizers, "pretrained.optimizers")
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
            train, size = _merged(study.train, variant.train), None
            for weights in find_weights(study.pretrained, backbone, trained_by, stand_in=stand_in):
                if weights.inits:
                    train |= {"init": weights.inits[0], "pretrained_with": weights.optimizer}
                size = size or _size(backbone, train, stand_in)
                for optimizer in optimizers:
                    opt_args = study.opt_args.get(optimizer)
                    settings = {**train, "opt_args": opt_args} if opt_args else dict(train)
                    _check_optimizer(backbone, optimizer, settings, stand_in)
                    pairs.append(
                        Pair(
                            backbone=backbone,
                            optimizer=optimizer,
                            variant=_variant(variant.name, weights),
                            train=settings,
                            inits=weights.inits,
                            **size,
                            **_optimizer(study, backbone, optimizer, settings),
                        )
                    )
    return pairs


def _variant(name: str, weights: Weights) -> str:
    """Return what tables call a variant that starts from weights."""
    if weights.optimizer is None:
        return name
    return ", ".join([*[name] * bool(name), f"pre-trained with {weights.optimizer}"])


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
    MODELS.resolve(pattern)
    return [MODELS.canonical(pattern)]


def _optimizers(pattern: str) -> list[str]:
    from bocb_jax import optim, paper

    of_paper = paper.optimizers()
    if pattern == "paper":
        return of_paper
    if pattern.startswith("category:"):
        later = [name for name in optim.list_optimizers() if name not in of_paper]
        category = pattern.partition(":")[2]
        return [n for n in (*of_paper, *later) if optim.optimizer_info(n).category == category]
    if set(pattern) & set("*?["):
        return optim.list_optimizers(pattern)
    optim.optimizer_info(pattern)
    return [pattern]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the settings of a run stand for."""

    resolved: "ResolvedConfig"
    spec: "ProgramSpec"
    epoch_steps: int
    has_data: bool


def _run(backbone: str, optimizer: str, train: dict[str, Any], stand_in: bool) -> _Run:
    from bocb_jax.build import program_spec
    from bocb_jax.tasks.kinds import KINDS, epoch_steps

    config = from_dict(TrainConfig, {**train, "model": backbone, "opt": optimizer})
    kind = KINDS[config.task]
    dataset, has_data = kind.open_or_stand_in(config) if stand_in else (kind.open(config), True)
    resolved = kind.resolve(config, dataset)
    data = kind.data(config, resolved, dataset)
    steps = epoch_steps(config, resolved, data, has_data=has_data)
    return _Run(resolved, program_spec(config, resolved, dataset, steps), steps, has_data)


def _size(backbone: str, train: dict[str, Any], stand_in: bool) -> dict[str, Any]:
    """Return the fields of `Pair` that say how large a run of a backbone is.

    Raises:
      UserError: the settings do not go together, or the backbone cannot be trained.
    """
    import jax
    from flax import nnx

    from bocb_jax.build import checked_passes
    from bocb_jax.engine.sharding import make_mesh
    from bocb_jax.models.macs import count_macs

    run = _run(backbone, "sgd", train, stand_in)
    try:
        model = checked_passes(run.spec, make_mesh(devices=1)).abstract_model
        macs = count_macs(model, run.spec.image_size)  # also raises where images are too small
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{backbone} cannot take images of {run.spec.image_size} pixels: {error}"
        ) from error
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return {
        "epochs": run.resolved.epochs,
        "images": run.resolved.epochs * run.epoch_steps * run.resolved.batch_size,
        "num_params": sum(leaf.size for leaf in leaves),
        "macs": macs,
        "has_data": run.has_data,
    }


def _check_optimizer(backbone: str, optimizer: str, train: dict[str, Any], stand_in: bool) -> None:
    """Raise UserError if an optimizer cannot take its arguments or, the user's own, train."""
    from bocb_jax import optim
    from bocb_jax.build import build_optimizer, checked_passes, checked_steps
    from bocb_jax.engine.sharding import make_mesh

    is_own = optim.optimizer_info(optimizer).own
    if is_own or train.get("opt_args"):
        spec = _run(backbone, optimizer, train, stand_in).spec
        build_optimizer(spec)
        if is_own:
            checked_steps(spec, checked_passes(spec, make_mesh(devices=1)))


def _optimizer(
    study: Study, backbone: str, optimizer: str, train: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of `Pair` that follow from the optimizer and from the paper."""
    from bocb_jax import optim, paper
    from bocb_jax.tasks.resolve import usual_rates

    info = optim.optimizer_info(optimizer)
    lr, weight_decay = info.search_center
    config = from_dict(TrainConfig, {**train, "model": backbone, "opt": optimizer})
    if config.task != "classification":
        lr, weight_decay = usual_rates(config)
    elif study.search.kind == "around":  # as in the paper: around its most frequent values
        lr = (*info.paper_learning_rate, lr)[0]
        weight_decay = (*info.paper_weight_decay, weight_decay)[0]
    tuned = paper.tuned(backbone, optimizer) if config.task == "classification" else None
    return {
        "category": info.category,
        "state_per_parameter": info.state_per_parameter,
        "center": (lr, weight_decay),
        "tuned": (tuned.learning_rate, tuned.weight_decay) if tuned else None,
    }


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `change`, table by table."""
    merged = dict(base)
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


if __name__ == "__main__":
    main()
