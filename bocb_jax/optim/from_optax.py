"""Optimizers whose mathematics Optax has as the references have it."""

import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


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
    paper="Kingma and Ba, 2015, arXiv 1412.6980",
    decays=("l2", "decoupled"),
    default_learning_rate=5e-4,
    default_weight_decay=1e-8,
    paper_learning_rate=(5e-4,),
    paper_weight_decay=(1e-8,),
    reference="torch.optim.Adam",
    numeric_class="exact",
    state_per_parameter=2,
)
def adam(pack: Packaging, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8):
    """Adam: momentum over the root of the mean square of the gradient.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g²
    p <- p - lr * m̂ / (sqrt(v̂) + eps),  m̂ and v̂ being corrected for their start at zero

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.
    """
    return pack.chain(optax.scale_by_adam(b1, b2, eps))


@add_row(
    category="b",
    paper="Kingma and Ba, 2015, arXiv 1412.6980",
    decays=("l2", "decoupled"),
    default_learning_rate=1e-3,
    default_weight_decay=1e-4,
    paper_learning_rate=(5e-4, 1e-3),
    paper_weight_decay=(1e-4,),
    reference="torch.optim.Adamax",
    numeric_class="exact",
    state_per_parameter=2,
)
def adamax(pack: Packaging, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8):
    """Adam with the largest gradient seen, slowly forgotten, in place of the root mean square.

    m <- b1 m + (1 - b1) g;  u <- max(b2 u, |g| + eps);  p <- p - lr * m̂ / u

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the maximum.
      eps: added to the size of the gradient.
    """
    return pack.chain(optax.scale_by_adamax(b1, b2, eps))


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


@add_row(
    category="d",
    paper="Zeiler, 2012, arXiv 1212.5701",
    decays=("l2", "decoupled"),
    default_learning_rate=2.0,
    paper_learning_rate=(2.0,),
    paper_weight_decay=(0.0,),
    reference="torch.optim.Adadelta",
    numeric_class="exact",
    state_per_parameter=2,
)
def adadelta(pack: Packaging, *, rho: Beta = 0.9, eps: NonNegative = 1e-6):
    """Adadelta: the gradient in units of the changes made so far.

    v <- rho v + (1 - rho) g²;  d = sqrt(x + eps) / sqrt(v + eps) * g
    x <- rho x + (1 - rho) d²;  p <- p - lr * d

    Args:
      pack: learning rate, weight decay and masks.
      rho: decay of both means.
      eps: added under both roots; it also sets the size of the first updates.
    """
    return pack.chain(optax.scale_by_adadelta(rho, eps))


@add_row(
    category="d",
    paper="Tieleman and Hinton, 2012, Coursera lecture 6.5",
    decays=("l2", "decoupled"),
    default_learning_rate=5e-4,
    paper_learning_rate=(5e-4,),
    paper_weight_decay=(0.0,),
    reference="torch.optim.RMSprop",
    numeric_class="exact",
    state_per_parameter=1,
    notes="Learning rate after momentum, as in PyTorch; Optax's rmsprop has it before.",
)
def rmsprop(
    pack: Packaging,
    *,
    decay_rate: Beta = 0.99,
    momentum: Beta = 0.0,
    eps: NonNegative = 1e-8,
):
    """RMSProp: the gradient over the root of its mean square.

    v <- decay_rate v + (1 - decay_rate) g²;  m <- momentum m + g / (sqrt(v) + eps);  p <- p - lr m

    Args:
      pack: learning rate, weight decay and masks.
      decay_rate: decay of the mean square (PyTorch's alpha).
      momentum: decay of the momentum; 0 for none.
      eps: added to the root.
    """
    scale = optax.scale_by_rms(decay_rate, eps, eps_in_sqrt=False)
    return pack.chain(scale, optax.trace(momentum) if momentum else optax.identity())
