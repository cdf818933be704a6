"""PSGD with Kronecker factors: a preconditioner that is itself learned by gradient descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, Fraction, Positive, Steps
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row

BALANCE_INTERVAL = 100  # steps between two rounds of `balance`
Factors = tuple[jax.Array, ...]  # upper triangular (n, n), or a diagonal (n,), for each axis


class ScaleByPsgdKronState(NamedTuple):
    """State of `scale_by_psgd_kron`."""

    count: Any  # updates done: int32, shape ()
    since_update: jax.Array  # steps since the factors were last updated: int32, shape ()
    mu: optax.Updates  # mean gradient; shapes of the parameters
    factors: Any  # `Factors` for each parameter


def as_matrix(x: jax.Array) -> jax.Array:
    """Return a kernel as a (height * width * in, out) matrix; a vector as it is."""
    return x if x.ndim < 2 else x.reshape(-1, x.shape[-1])


def first_factors(p: jax.Array, scale: float, max_triangular: int) -> Factors:
    """Return multiples of the identity whose product is `scale`.

    They are diagonal for vectors, for axes longer than `max_triangular` and for those of length 1.
    """
    x = as_matrix(p)
    scale = scale ** (1 / max(x.ndim, 1))
    dense = x.ndim == 2
    return tuple(
        scale
        * (jnp.eye(n, dtype=x.dtype) if dense and 1 < n <= max_triangular else jnp.ones(n, x.dtype))
        for n in (x.shape or (1,))
    )


def multiply(q: jax.Array, x: jax.Array) -> jax.Array:
    """Return Q x along the first axis of x."""
    if q.ndim == 2:
        return q @ x
    return q.reshape(-1, *[1] * (x.ndim - 1)) * x


def solve(q: jax.Array, x: jax.Array) -> jax.Array:
    """Return Q^-T x along the first axis of x."""
    if q.ndim == 2:
        return jax.scipy.linalg.solve_triangular(q, x, trans=1)
    return x / q.reshape(-1, *[1] * (x.ndim - 1))


def norm_lower_bound(a: jax.Array) -> jax.Array:
    """Bound the spectral norm of a symmetric (n, n) matrix from below, from its longest row."""
    largest = jnp.max(jnp.abs(a))
    a = a / jnp.where(largest > 0, largest, 1)
    row = a[jnp.argmax(jnp.sum(a * a, axis=1))]
    x = a @ row
    return largest * optax.tree.norm(a @ (x / jnp.maximum(optax.tree.norm(x), 1e-30)))


def learn(g: jax.Array, factors: Factors, v: jax.Array, rate: float) -> Factors:
    """Move the factors by one step of gradient descent towards whitening g.

    Args:
      g: mean gradient, a matrix or a vector.
      factors: one for each axis of g.
      v: standard normal noise of its shape.
      rate: step size.
    """
    a, b = g, v
    for q in factors:  # each round turns the next axis to the front; two rounds restore the order
        a, b = jnp.moveaxis(multiply(q, a), 0, -1), jnp.moveaxis(solve(q, b), 0, -1)

    def step(q: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        if q.ndim == 1:
            others = tuple(range(1, a.ndim))
            grown, shrunk = jnp.sum(a * a, others), jnp.sum(b * b, others)
            return q - rate * (grown - shrunk) * q / (jnp.max(jnp.abs(grown + shrunk)) + 1e-30)
        grown, shrunk = a @ a.T, b @ b.T
        change = jnp.triu(grown - shrunk) / (norm_lower_bound(grown + shrunk) + 1e-30)
        return q - rate * change @ q

    return tuple(
        step(q, jnp.moveaxis(a, axis, 0), jnp.moveaxis(b, axis, 0))
        for axis, q in enumerate(factors)
    )


def balance(factors: Factors) -> Factors:
    """Give the factors of one tensor equal size without changing their product."""
    sizes = [jnp.max(jnp.abs(q)) for q in factors]
    mean = jnp.prod(jnp.stack(sizes)) ** (1 / len(sizes))
    return tuple(q * (mean / size) for q, size in zip(factors, sizes, strict=True))


def update_factors(
    grads: Any, factors: Any, key: jax.Array, rate: float, rebalance: jax.Array
) -> Any:
    """Let the factors of every tensor learn once, and balance them if asked to.

    Args:
      grads: tree of mean gradients, as matrices or vectors.
      factors: `Factors` for each.
      key: of the noise; each tensor folds in its number.
      rate: step size.
      rebalance: boolean, shape ().
    """
    leaves, structure = jax.tree.leaves(grads), jax.tree.structure(grads)
    noise = [
        jax.random.normal(jax.random.fold_in(key, i), g.shape, g.dtype)
        for i, g in enumerate(leaves)
    ]

    def update(g: jax.Array, v: jax.Array, q: Factors) -> Factors:
        q = learn(g, q, v, rate)
        return jax.tree.map(lambda new, old: jnp.where(rebalance, new, old), balance(q), q)

    return jax.tree.map(update, grads, jax.tree.unflatten(structure, noise), factors)


def precondition(g: jax.Array, factors: Factors) -> jax.Array:
    """Return Qᵀ Q g along each axis."""
    for q in factors:
        g = multiply(q.T if q.ndim == 2 else q, multiply(q, g))
        g = jnp.moveaxis(g, 0, -1)
    return g


def scale_by_psgd_kron(
    *,
    b1: float,
    precond_lr: float,
    init_scale: float,
    min_update_probability: float,
    max_triangular: int,
    max_rms: float,
) -> optax.GradientTransformationExtraArgs:
    """Rescale updates according to PSGD with Kronecker factors; see `psgd_kron`.

    `update` takes `key` as an extra argument, for the noise.
    """

    def init_fn(params: optax.Params) -> ScaleByPsgdKronState:
        count = jnp.zeros((), jnp.int32)
        factors = jax.tree.map(lambda p: first_factors(p, init_scale, max_triangular), params)
        return ScaleByPsgdKronState(count, count, optax.tree.zeros_like(params), factors)

    def update_fn(
        updates: optax.Updates,
        state: ScaleByPsgdKronState,
        params: optax.Params | None = None,
        *,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByPsgdKronState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        key = jax.random.fold_in(jax.random.key(0) if key is None else key, state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        debiased = jax.tree.map(lambda m: as_matrix(m / (1 - b1**count)), mu)

        annealed = jnp.exp(-0.001 * (state.count - 500.0))
        probability = jnp.clip(annealed, min_update_probability, 1)
        since = state.since_update + 1
        due = since >= 1 / probability

        def updated() -> Any:
            rebalance = count % BALANCE_INTERVAL == 0
            return update_factors(debiased, state.factors, key, precond_lr, rebalance)

        factors = jax.lax.cond(due, updated, lambda: state.factors)

        def direction(g: jax.Array, m: jax.Array, q: Factors) -> jax.Array:
            u = precondition(g, q)
            size = jnp.sqrt(jnp.mean(u * u)) + 1e-8
            return (u * jnp.minimum(1, max_rms / size)).reshape(m.shape)

        updates = jax.tree.map(direction, debiased, mu, factors)
        since = jnp.where(due, 0, since)
        return updates, ScaleByPsgdKronState(count, since, mu, factors)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=3e-4,
    default_weight_decay=0.05,
    reference="the paper and kron_torch, in NumPy",
    numeric_class="exact",
    state_per_parameter=4.8,
    cost="products with triangular matrices; triangular solves while the factors are learned",
    notes=(
        "The size of the state is for ViT-S. "
        "Factors are updated at every step at first, and every 33rd after 4000."
    ),
)
def psgd_kron(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    precond_lr: Positive = 0.1,
    init_scale: Positive = 1.0,
    min_update_probability: Fraction = 0.03,
    max_triangular: Steps = 8192,
    max_rms: Positive = 1.1,
) -> optax.GradientTransformation:
    """Learn a Kronecker-factored preconditioner that whitens the gradient (PSGD Kron).

    A = Q1 m̂ Q2ᵀ;  B = Q1^-T v Q2^-1, v being noise
    Q1 <- Q1 - precond_lr triu(A Aᵀ - B Bᵀ) / |A Aᵀ + B Bᵀ| Q1, likewise Q2
    p <- p - lr * (Q1ᵀ Q1 m̂ Q2ᵀ Q2, root mean square at most max_rms, + wd p)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      precond_lr: step size of the factors.
      init_scale: of the first preconditioner's root.
      min_update_probability: share of the steps that update the factors, in the end.
      max_triangular: longest axis that gets a triangular factor; longer ones a diagonal.
      max_rms: largest root mean square of an update.

    References:
      Li, 2018, arXiv 1512.04202; Pooladzandi and Li, 2024, arXiv 2402.04553
    """
    return ctx.chain(
        scale_by_psgd_kron(
            b1=b1,
            precond_lr=precond_lr,
            init_scale=init_scale,
            min_update_probability=min_update_probability,
            max_triangular=max_triangular,
            max_rms=max_rms,
        )
    )
