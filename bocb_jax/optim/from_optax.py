"""Optimizers whose mathematics Optax has as the references have it."""

import optax

from bocb_jax.optim.packaging import Packaging
from bocb_jax.optim.ranges import Beta, NonNegative
from bocb_jax.optim.table import add_row


@add_row(
    category="a",
    paper="Robbins and Monro, 1951; momentum: Polyak, 1964; Sutskever et al., 2013",
    decays=("l2", "decoupled"),
    default_learning_rate=0.1,
    default_weight_decay=1e-4,
    paper_learning_rate=(0.1,),
    paper_weight_decay=(1e-4,),
    reference="torch.optim.SGD",
    numeric_class="exact",
    state_per_parameter=1,
)
def sgd(pack: Packaging, *, momentum: Beta = 0.9, nesterov: bool = False):
    """Stochastic gradient descent with momentum.

    m <- momentum * m + g;  p <- p - lr * m  (Nesterov: p - lr * (g + momentum * m))

    Args:
      pack: learning rate, weight decay and masks.
      momentum: decay of the momentum; 0 for none.
      nesterov: look ahead along the momentum.
    """
    return pack.chain(optax.trace(momentum, nesterov) if momentum else optax.identity())


@add_row(
    category="b",
    paper="Loshchilov and Hutter, 2019, arXiv 1711.05101",
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    paper_learning_rate=(5e-4,),
    paper_weight_decay=(0.05,),
    reference="torch.optim.AdamW",
    numeric_class="exact",
    state_per_parameter=2,
)
def adamw(pack: Packaging, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8):
    """Adam with decoupled weight decay.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g²
    p <- p - lr * (m̂ / (sqrt(v̂) + eps) + wd p),  m̂ and v̂ being corrected for their start at zero

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
    """
    return pack.chain(optax.scale_by_adam(b1, b2, eps))


@add_row(
    category="a",
    paper="Chen et al., 2023, Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675",
    decays=("decoupled",),
    default_learning_rate=1e-4,
    paper_learning_rate=(5e-5, 1e-4),
    paper_weight_decay=(0.0,),
    reference="timm.optim.Lion",
    numeric_class="exact",
    state_per_parameter=1,
)
def lion(pack: Packaging, *, b1: Beta = 0.9, b2: Beta = 0.99):
    """Lion: the sign of an interpolated momentum.

    p <- p - lr * (sign(b1 m + (1 - b1) g) + wd p);  m <- b2 m + (1 - b2) g

    Args:
      pack: learning rate, weight decay and masks.
      b1: weight of the momentum in the update.
      b2: decay of the momentum.
    """
    return pack.chain(optax.scale_by_lion(b1, b2))
