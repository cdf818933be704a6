"""Tables of fine-tuning from weights of several optimizers, with planted truth."""

import numpy as np
import pandas

from bocb_jax.coupling.score_table import ScoreTable

PRE = ("sgd", "adamw", "lamb")
FINE = ("sgd", "adamw", "lamb", "lion", "adam", "adan")


def table(kind, size, rng, *, own_weights=True, noisy=1.0, backbones=2, seeds=3) -> ScoreTable:
    """Draw AP of every pair on every backbone.

    Args:
      kind: "none" (nothing but noise), "additive", "same" (the same optimizer gains `size`) or
        "crossing" (every pair has an effect of its own with this standard deviation).
      size: of the effect.
      rng: of all draws.
      own_weights: whether each seed starts from weights of its own; else all of one set.
      noisy: factor on the noise of the last optimizer.
      backbones, seeds: their numbers.
    """
    rows = []
    for backbone in range(backbones):
        main = 0.0 if kind == "none" else 1.0
        truth = 50 + main * rng.normal(0, 1, (3, 1)) + main * rng.normal(0, 1.5, (1, 6))
        if kind == "same":
            truth = truth + size * np.eye(3, 6)
        if kind == "crossing":
            truth = truth + rng.normal(0, size, (3, 6))
        for i, pre in enumerate(PRE):
            for seed in range(seeds):
                # What a set of weights adds, to all and to each optimizer.
                start = rng.normal(0, 0.5) + rng.normal(0, 0.5, 6) if own_weights else np.zeros(6)
                for j, fine in enumerate(FINE):
                    noise = rng.normal(0, 0.5 * (noisy if j == 5 else 1))
                    rows.append(
                        {
                            "backbone": f"net{backbone} (pre-trained with {pre})",
                            "base_backbone": f"net{backbone}",
                            "pretrained_with": pre,
                            "start": f"{backbone} {pre} {seed if own_weights else 0}",
                            "optimizer": fine,
                            "seed": seed,
                            "score": truth[i, j] + start[j] + noise,
                            "status": "finished",
                            "spread": np.nan,
                        }
                    )
    return ScoreTable(pandas.DataFrame(rows), None, "AP", "AP", True, 0.0, "a test")
