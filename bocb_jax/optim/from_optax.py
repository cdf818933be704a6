"""Optimizers whose mathematics is Optax's own: SGD, Adam and its kin, Lion, Adadelta, RMSProp."""

import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=0.1,
    default_weight_decay=1e-4,
    reference="torch.optim.SGD",
    numeric_class="exact",
    state_per_parameter=1,
)
def sgd(
    ctx: Context, *, momentum: Beta = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Follow the gradient with momentum (stochastic gradient descent).

    m <- momentum * m + g;  p <- p - lr * m  (Nesterov: p - lr * (g + momentum * m))

    Args:
      ctx: learning rate, weight decay and masks.
      momentum: decay of the momentum; 0 for none.
      nesterov: look ahead along the momentum.

    References:
      Robbins and Monro, 1951; momentum: Polyak, 1964; Sutskever et al., 2013
    """
    return ctx.chain(optax.trace(momentum, nesterov) if momentum else optax.identity())


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=5e-4,
    default_weight_decay=1e-8,
    reference="torch.optim.Adam",
    numeric_class="exact",
    state_per_parameter=2,
)
def adam(
    ctx: Context, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Divide the mean gradient by the root of its mean square (Adam).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g²
    p <- p - lr * m̂ / (sqrt(v̂) + eps),  m̂ and v̂ being corrected for their start at zero

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.

    References:
      Kingma and Ba, 2015, arXiv 1412.6980
    """
    return ctx.chain(optax.scale_by_adam(b1, b2, eps))


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=1e-3,
    default_weight_decay=1e-4,
    reference="torch.optim.Adamax",
    numeric_class="exact",
    state_per_parameter=2,
)
def adamax(
    ctx: Context, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Divide the mean gradient by a decaying maximum of its size (Adam in the infinity norm).

    m <- b1 m + (1 - b1) g;  u <- max(b2 u, |g| + eps);  p <- p - lr * m̂ / u

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the maximum.
      eps: added to the size of the gradient.

    References:
      Kingma and Ba, 2015, arXiv 1412.6980
    """
    return ctx.chain(optax.scale_by_adamax(b1, b2, eps))


@add_row(
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    reference="torch.optim.AdamW",
    numeric_class="exact",
    state_per_parameter=2,
)
def adamw(
    ctx: Context, *, b1: Beta = 0.9, b2: Beta = 0.999, eps: NonNegative = 1e-8
) -> optax.GradientTransformation:
    """Apply Adam with decoupled weight decay.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g²
    p <- p - lr * (m̂ / (sqrt(v̂) + eps) + wd p),  m̂ and v̂ being corrected for their start at zero

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root.

    References:
      Loshchilov and Hutter, 2019, arXiv 1711.05101
    """
    return ctx.chain(optax.scale_by_adam(b1, b2, eps))


@add_row(
    decays=("decoupled",),
    default_learning_rate=1e-4,
    reference="timm.optim.Lion",
    numeric_class="exact",
    state_per_parameter=1,
)
def lion(ctx: Context, *, b1: Beta = 0.9, b2: Beta = 0.99) -> optax.GradientTransformation:
    """Follow the sign of an interpolated momentum (Lion).

    p <- p - lr * (sign(b1 m + (1 - b1) g) + wd p);  m <- b2 m + (1 - b2) g

    Args:
      ctx: learning rate, weight decay and masks.
      b1: weight of the momentum in the update.
      b2: decay of the momentum.

    References:
      Chen et al., 2023, Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675
    """
    return ctx.chain(optax.scale_by_lion(b1, b2))


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=2.0,
    reference="torch.optim.Adadelta",
    numeric_class="exact",
    state_per_parameter=2,
)
def adadelta(
    ctx: Context, *, rho: Beta = 0.9, eps: NonNegative = 1e-6
) -> optax.GradientTransformation:
    """Measure the gradient in units of the changes made so far (Adadelta).

    v <- rho v + (1 - rho) g²;  d = sqrt(x + eps) / sqrt(v + eps) * g
    x <- rho x + (1 - rho) d²;  p <- p - lr * d

    Args:
      ctx: learning rate, weight decay and masks.
      rho: decay of both means.
      eps: added under both roots; it also sets the size of the first updates.

    References:
      Zeiler, 2012, arXiv 1212.5701
    """
    return ctx.chain(optax.scale_by_adadelta(rho, eps))


@add_row(
    decays=("l2", "decoupled"),
    default_learning_rate=5e-4,
    reference="torch.optim.RMSprop",
    numeric_class="exact",
    state_per_parameter=1,
    notes="Momentum comes before the learning rate, as in PyTorch; Optax's rmsprop has it after.",
)
def rmsprop(
    ctx: Context,
    *,
    decay_rate: Beta = 0.99,
    momentum: Beta = 0.0,
    eps: NonNegative = 1e-8,
) -> optax.GradientTransformation:
    """Divide the gradient by the root of its mean square (RMSProp).

    v <- decay_rate v + (1 - decay_rate) g²;  m <- momentum m + g / (sqrt(v) + eps);  p <- p - lr m

    Args:
      ctx: learning rate, weight decay and masks.
      decay_rate: decay of the mean square (PyTorch's alpha).
      momentum: decay of the momentum; 0 for none.
      eps: added to the root.

    References:
      Tieleman and Hinton, 2012, Coursera lecture 6.5
    """
    scale = optax.scale_by_rms(decay_rate, eps, eps_in_sqrt=False)
    return ctx.chain(scale, optax.trace(momentum) if momentum else optax.identity())
