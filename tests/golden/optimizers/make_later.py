"""Makes the goldens of optimizers that came after the paper; needs PyTorch, so not part of CI.

    pip install torch timm pytorch-optimizer schedulefree prodigyopt
    python tests/golden/optimizers/make_later.py FOLDER

The problem is that of the other goldens: see tests/optim/test_golden.py.
"""

import functools
import json
import pathlib
import sys
import zlib

import numpy as np
import prodigyopt
import pytorch_optimizer
import schedulefree
import timm.optim
import timm.optim.muon
import torch

SEED, STEPS = 1, 60
SHAPES = {"conv": (8, 6, 3, 3), "linear": (12, 10), "bias": (12,), "scale": (8,)}

# timm runs Newton-Schulz in bfloat16; in float64 its mathematics can be compared to the last digit.
timm.optim.muon.zeropower_via_newtonschulz = functools.partial(
    timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float64
)


def muon(params, lr, weight_decay, adjust, eps):
    groups = [
        {"params": [p for p in params if p.ndim > 1], "nesterov": True},
        {"params": [p for p in params if p.ndim < 2], "nesterov": False, "use_fallback": True},
    ]
    options = {"weight_decay": weight_decay, "adjust_lr_fn": adjust, "eps": eps}
    return timm.optim.Muon(groups, lr=lr, ns_coefficients="original", **options)


# name of the golden -> (our hyper-parameters, reference made from parameters)
ADAM = {"b1": 0.9, "b2": 0.99}
REFERENCES = {
    "muon": (
        {"learning_rate": 0.01, "weight_decay": 0.02, "adjust": "match_rms_adamw", "eps": 1e-7},
        muon,
    ),
    "muon.original": (
        {"learning_rate": 0.01, "weight_decay": 0.02, "adjust": "original", "eps": 1e-7},
        muon,
    ),
    "schedule_free_sgd": (
        {"learning_rate": 0.05, "weight_decay": 1e-3, "b1": 0.9},
        lambda p, lr, weight_decay, b1: schedulefree.SGDScheduleFree(
            p, lr=lr, momentum=b1, weight_decay=weight_decay, foreach=False
        ),
    ),
    "schedule_free_adamw": (
        {"learning_rate": 0.01, "weight_decay": 0.02, "b1": 0.9, "b2": 0.99},
        lambda p, lr, weight_decay, b1, b2: schedulefree.AdamWScheduleFree(
            p, lr=lr, betas=(b1, b2), weight_decay=weight_decay, foreach=False
        ),
    ),
    "prodigy": (
        {"learning_rate": 1.0, "weight_decay": 0.02, **ADAM},
        lambda p, lr, weight_decay, b1, b2: prodigyopt.Prodigy(
            p, lr=lr, betas=(b1, b2), weight_decay=weight_decay
        ),
    ),
    "ademamix": (
        {"learning_rate": 0.01, "weight_decay": 0.02, **ADAM, "b3": 0.999, "alpha": 5.0},
        lambda p, lr, weight_decay, b1, b2, b3, alpha: pytorch_optimizer.AdEMAMix(
            p,
            lr=lr,
            betas=(b1, b2, b3),
            alpha=alpha,
            weight_decay=weight_decay,
            weight_decouple=True,
        ),
    ),
    "mars": (
        {"learning_rate": 0.01, "weight_decay": 0.02, "b1": 0.95, "b2": 0.99, "gamma": 0.025},
        lambda p, lr, weight_decay, b1, b2, gamma: timm.optim.Mars(
            p, lr=lr, betas=(b1, b2), gamma=gamma, weight_decay=weight_decay, betas_1d=(0.9, 0.95)
        ),
    ),
    "adopt": (
        {"learning_rate": 0.01, "weight_decay": 0.02, **ADAM, "clip_exponent": 0.25},
        lambda p, lr, weight_decay, b1, b2, clip_exponent: timm.optim.Adopt(
            p, lr=lr, betas=(b1, b2), clip_exp=clip_exponent, weight_decay=weight_decay,
            decoupled=True, foreach=False,
        ),
    ),
    "madgrad": (
        {"learning_rate": 0.01, "weight_decay": 1e-3, "momentum": 0.9},
        lambda p, lr, weight_decay, momentum: timm.optim.MADGRAD(
            p, lr=lr, momentum=momentum, weight_decay=weight_decay
        ),
    ),
    "cadamw": (
        {"learning_rate": 0.01, "weight_decay": 0.05, **ADAM},
        lambda p, lr, weight_decay, b1, b2: timm.optim.AdamWLegacy(
            p, lr=lr, betas=(b1, b2), weight_decay=weight_decay, caution=True
        ),
    ),
    "clion": (
        {"learning_rate": 0.001, "weight_decay": 0.02, **ADAM},
        lambda p, lr, weight_decay, b1, b2: timm.optim.Lion(
            p, lr=lr, betas=(b1, b2), weight_decay=weight_decay, caution=True
        ),
    ),
    "clamb": (
        {"learning_rate": 0.01, "weight_decay": 0.02, **ADAM},
        lambda p, lr, weight_decay, b1, b2: timm.optim.Lamb(
            p, lr=lr, betas=(b1, b2), weight_decay=weight_decay, caution=True
        ),
    ),
}  # fmt: skip


def normal(name, shape):
    bits = np.random.PCG64(zlib.crc32(f"{SEED}:{name}".encode()))
    return torch.tensor(np.random.Generator(bits).standard_normal(shape))


def trajectory(make, rate_of):
    """Parameters after 1, 10 and 60 updates; also x of schedule-free optimizers as <name>.x."""
    start = {k: normal(f"p:{k}", s) * 0.5 for k, s in SHAPES.items()}
    params = {k: torch.nn.Parameter(v.clone()) for k, v in start.items()}
    optimizer = make(list(params.values()))
    averaged = hasattr(optimizer, "train")
    found = {}
    for t in range(STEPS):
        if averaged:
            optimizer.train()
        for group in optimizer.param_groups:
            group["lr"] = rate_of(t)
        for k, p in params.items():
            p.grad = (
                normal(f"g{t}:{k}", p.shape) * (0.3 + 0.7 * np.cos(t / 7) ** 2) + 0.2 * start[k]
            )
        optimizer.step()
        if t + 1 in (1, 10, 60):
            found |= {f"{k}@{t + 1}": p.detach().numpy().copy() for k, p in params.items()}
            if averaged:
                optimizer.eval()
                found |= {f"{k}.x@{t + 1}": p.detach().numpy().copy() for k, p in params.items()}
    return found


def main(folder):
    torch.set_default_dtype(torch.float64)
    for name, (spec, make) in REFERENCES.items():
        options = {k: v for k, v in spec.items() if k != "learning_rate"}
        rate = spec["learning_rate"]
        reference = functools.partial(make, lr=rate, **options)
        out = {"spec": json.dumps(spec), "seed": SEED, "steps": STEPS}
        cosine = lambda t, rate=rate: rate * 0.5 * (1 + np.cos(np.pi * t / STEPS))  # noqa: E731
        for schedule, rate_of in {"constant": lambda t, rate=rate: rate, "cosine": cosine}.items():
            path = trajectory(reference, rate_of)
            out |= {f"{schedule}/{key}": value for key, value in path.items()}
        np.savez_compressed(pathlib.Path(folder) / f"{name}.npz", **out)
        print(name)


if __name__ == "__main__":
    main(sys.argv[1])
