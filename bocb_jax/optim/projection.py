"""SGDP and AdamP: no step along the weights of layers whose scale does not matter."""

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative
from bocb_jax.optim.context import Context
from bocb_jax.optim.masks import DECAYED_KINDS
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam


def project_and_decay(
    base: optax.GradientTransformation,
    *,
    delta: float,
    wd_ratio: float,
    eps: float,
    weight_decay: float | jax.Array,
    mask: PerParam,
    kinds: PerParam,
) -> optax.GradientTransformation:
    """Remove the radial part from the updates of `base` where weights act scale-invariant.

    A tensor counts as scale-invariant if the cosine between gradient and weights is below
    delta / sqrt(size) for each output channel, or else for the whole tensor; it then also gets
    only `wd_ratio` of the weight decay. Vectors are left alone.

    Args:
      base: makes the updates; its state is the state.
      delta: threshold on the cosine.
      wd_ratio: share of the weight decay left to projected tensors.
      eps: added to norms.
      weight_decay: coefficient, shape ().
      mask: parameters -> tree of booleans: where decay applies.
      kinds: parameters -> tree of parameter kinds, which tell the output channels.
    """

    def project(u: jax.Array, g: jax.Array, p: jax.Array, kind: str, decayed: bool) -> jax.Array:
        decay = weight_decay if decayed else 0.0
        if p.ndim < 2:
            return u + decay * p
        channel = p.ndim - 1 if kind in DECAYED_KINDS else 0  # kernels end with output channels
        axes = tuple(axis for axis in range(p.ndim) if axis != channel)

        def dot(a: jax.Array, b: jax.Array) -> jax.Array:  # one number for each channel
            return jnp.sum(a * b, axes, keepdims=True)

        pg, pu, pp, gg = dot(p, g), dot(p, u), dot(p, p), dot(g, g)

        def is_invariant(pg: jax.Array, pp: jax.Array, gg: jax.Array, size: int) -> jax.Array:
            cosine = pg / (jnp.maximum(jnp.sqrt(pp), eps) * jnp.maximum(jnp.sqrt(gg), eps))
            return jnp.max(jnp.abs(cosine)) < delta / size**0.5

        by_channel = is_invariant(pg, pp, gg, p.size // p.shape[channel])
        by_layer = is_invariant(pg.sum(), pp.sum(), gg.sum(), p.size)
        radial = jnp.where(
            by_channel,
            pu / (jnp.sqrt(pp) + eps) ** 2,
            jnp.where(by_layer, pu.sum() / (jnp.sqrt(pp.sum()) + eps) ** 2, 0.0),
        )
        ratio = jnp.where(by_channel | by_layer, wd_ratio, 1.0)
        return u + (decay * ratio - radial) * p

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        grads = updates
        updates, state = base.update(grads, state, params)
        updates = jax.tree.map(project, updates, grads, params, kinds(params), mask(params))
        return updates, state

    return optax.GradientTransformation(base.init, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=0.1,
    default_weight_decay=1e-4,
    reference="timm.optim.SGDP",
    numeric_class="exact",
    state_per_parameter=1,
    cost="element-wise and four dot products for each tensor",
)
def sgdp(
    ctx: Context,
    *,
    momentum: Beta = 0.9,
    nesterov: bool = False,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    eps: NonNegative = 1e-8,
) -> optax.GradientTransformation:
    """Remove the radial part from SGD's step where the scale of weights does not matter (SGDP).

    p <- p - lr * (m - (m . p) p / |p|² + wd wd_ratio / (1 - momentum) p),  m as in `sgd`

    Args:
      ctx: learning rate, weight decay and masks.
      momentum: decay of the momentum.
      nesterov: look ahead along the momentum.
      delta: threshold on the cosine; larger projects more tensors.
      wd_ratio: share of the weight decay left to projected tensors.
      eps: added to norms.

    References:
      Heo et al., 2021, AdamP, arXiv 2006.08217
    """
    projected = project_and_decay(
        optax.trace(momentum, nesterov),
        delta=delta,
        wd_ratio=wd_ratio,
        eps=eps,
        weight_decay=1 / (1 - momentum) * ctx.weight_decay,
        mask=ctx.mask,
        kinds=ctx.kinds,
    )
    return optax.chain(projected, ctx.scale_by_learning_rate())


@add_row(
    decays=("decoupled",),
    default_learning_rate=1e-3,
    default_weight_decay=0.05,
    reference="timm.optim.AdamP",
    numeric_class="exact",
    state_per_parameter=2,
    cost="element-wise and four dot products for each tensor",
)
def adamp(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-8,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
) -> optax.GradientTransformation:
    """Remove the radial part from AdamW's step where the scale of weights does not matter (AdamP).

    p <- p - lr * (u - (u . p) p / |p|² + wd wd_ratio p),  u as in `adamw`

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the mean of its square.
      eps: added to the root and to norms.
      delta: threshold on the cosine; larger projects more tensors.
      wd_ratio: share of the weight decay left to projected tensors.

    References:
      Heo et al., 2021, arXiv 2006.08217
    """
    projected = project_and_decay(
        optax.scale_by_adam(b1, b2, eps),
        delta=delta,
        wd_ratio=wd_ratio,
        eps=eps,
        weight_decay=ctx.weight_decay,
        mask=ctx.mask,
        kinds=ctx.kinds,
    )
    return optax.chain(projected, ctx.scale_by_learning_rate())
