"""Optimizers without a golden trajectory, against plain NumPy written from their papers.

In float64, over twelve updates with a stream of random gradients, at a cosine learning rate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax import optim
from bocb_jax.optim.psgd_kron import norm_lower_bound

STEPS = 12
SHAPES = {"conv": (2, 2, 3, 5), "matrix": (6, 6), "vector": (4,)}
KINDS = {"conv": "conv", "matrix": "matrix", "vector": "bias"}


def draw(what, shape):
    return np.random.default_rng(list(what.encode())).standard_normal(shape)


START = {name: draw(name, shape) for name, shape in SHAPES.items()}
GRADS = [{k: draw(f"{k}{t}", s) + 0.3 * START[k] for k, s in SHAPES.items()} for t in range(STEPS)]
SAMPLED = [{k: draw(f"s{k}{t}", s) for k, s in SHAPES.items()} for t in range(STEPS)]


def rate(peak, t):
    return peak * 0.5 * (1 + np.cos(np.pi * t / (2 * STEPS)))


def norm(x):
    return np.sqrt(np.sum(x * x))


def decay_of(name, wd):
    return 0.0 if name == "vector" else wd


def check(name, peak, reference, extra_args=lambda t: {}, bound=1e-9, **options):
    """Compare with `reference(name, p, lr)`, p being one tensor and lr a function of the step."""
    with jax.enable_x64(True):
        schedule = optim.schedules.warmup_cosine(peak, 0, 2 * STEPS)
        optimizer = optim.create_optimizer(name, schedule, parameter_kinds=KINDS, **options)

        def step(carry, inputs):
            params, state = carry
            t, grads = inputs
            updates, state = optimizer.update(grads, state, params, **extra_args(t))
            return (optax.apply_updates(params, updates), state), None

        def run(params):
            inputs = jnp.arange(STEPS), {k: jnp.stack([g[k] for g in GRADS]) for k in SHAPES}
            return jax.lax.scan(step, (params, optimizer.init(params)), inputs)[0][0]

        ours = jax.jit(run)({k: jnp.asarray(v) for k, v in START.items()})

    theirs = {k: reference(k, START[k].copy(), lambda t: rate(peak, t)) for k in SHAPES}
    moved = max(np.abs(theirs[k] - START[k]).max() for k in SHAPES)
    worst = max(np.abs(theirs[k] - np.asarray(ours[k])).max() for k in SHAPES)
    print(f"{name}: {worst / moved:.1e}")
    assert moved > 1e-3
    assert worst <= bound * moved


def adam(g, m, v, t, b1, b2, eps):
    """Return Adam's direction and its moments; t counts from 1."""
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), m, v


def test_sophia():
    wd, b1, b2, rho, batch, k = 0.1, 0.9, 0.95, 0.05, 7, 3

    def reference(name, p, lr):
        m = h = np.zeros_like(p)
        for t in range(STEPS):
            if t % k == 0:
                h = b2 * h + (1 - b2) * SAMPLED[t][name] ** 2
            m = b1 * m + (1 - b1) * GRADS[t][name]
            u = np.clip(m / (rho * batch * h + 1e-15), -1, 1)
            p = p - lr(t) * (u + decay_of(name, wd) * p)
        return p

    def extra_args(t):
        sampled = {k: jnp.stack([s[k] for s in SAMPLED])[t] for k in SHAPES}
        return {"key": jax.random.key(0), "sampled_label_grad_fn": lambda params, key: sampled}

    options = {"weight_decay": wd, "b1": b1, "b2": b2, "rho": rho, "update_interval": k}
    check("sophia", 0.01, reference, extra_args, batch_size=batch, **options)
    check(
        "sophia", 0.01, reference, lambda t: extra_args(t) | {"batch_size": batch}, **options
    )  # the argument of update decides


def test_sophia_as_openmixup_ran_it():
    def reference(name, p, lr):
        m = np.zeros_like(p)
        for t in range(STEPS):
            m = 0.965 * m + 0.035 * GRADS[t][name]
            p = p - lr(t) * (np.sign(m) + decay_of(name, 0.1) * p)
        return p

    check("sophia@openmixup", 0.01, reference, weight_decay=0.1)


def test_lars_as_openmixup_ran_it():
    def reference(name, p, lr):
        m = np.zeros_like(p)
        for t in range(STEPS):
            g, wd = GRADS[t][name], decay_of(name, 1e-3)
            ratio = 0.02 * norm(p) / (norm(g) + wd * norm(p))
            m = 0.9 * m + lr(t) * ratio * (g + wd * p)
            p = p - m
        return p

    check("lars@openmixup", 1.0, reference, weight_decay=1e-3, trust_coefficient=0.02)


def test_adafactor_as_openmixup_ran_it():
    def reference(name, p, lr):
        torch_layout = p.transpose(3, 2, 0, 1) if p.ndim == 4 else p.T
        rows = columns = whole = 0.0
        for t in range(STEPS):
            g = GRADS[t][name]
            g = g.transpose(3, 2, 0, 1) if g.ndim == 4 else g.T
            b2, square = 1 - (t + 1) ** -0.8, g * g + 1e-30
            if g.ndim > 1:
                rows = b2 * rows + (1 - b2) * square.mean(-1)
                columns = b2 * columns + (1 - b2) * square.mean(-2)
                r = (rows / rows.mean(-1, keepdims=True))[..., None]
                u = g / np.sqrt(r * columns[..., None, :])
            else:
                whole = b2 * whole + (1 - b2) * square
                u = g / np.sqrt(whole)
            u = u / max(1, np.sqrt(np.mean(u * u)))
            torch_layout = torch_layout - lr(t) * (u + decay_of(name, 0.1) * torch_layout)
        return torch_layout.transpose(2, 3, 1, 0) if p.ndim == 4 else torch_layout.T

    check("adafactor@openmixup", 0.01, reference, weight_decay=0.1)


def test_adam_mini():
    def reference(name, p, lr):
        m = v = 0.0
        for t in range(STEPS):
            g = GRADS[t][name]
            axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None  # one block an output neuron
            m = 0.9 * m + 0.1 * g
            v = 0.99 * v + 0.01 * np.mean(g * g, axis=axes)
            u = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.99 ** (t + 1))) + 1e-8)
            p = p - lr(t) * (u + decay_of(name, 0.1) * p)
        return p

    check("adam_mini", 0.01, reference, weight_decay=0.1, b2=0.99)


def rotate(g, matrices):
    for axis, matrix in enumerate(matrices):
        g = np.moveaxis(np.tensordot(matrix, g, axes=(1, axis)), 0, axis)
    return g


def gram(g, axis):
    flat = np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return flat @ flat.T


def test_shampoo():
    b1, b2, wd, interval, ridge = 0.9, 0.95, 0.1, 4, 1e-6

    def inverse_root(s, order):
        values, vectors = np.linalg.eigh(s)
        return vectors @ np.diag((values + ridge * values.max()) ** (-1 / order)) @ vectors.T

    def reference(name, p, lr):
        m = v = np.zeros_like(p)
        statistics = [0.0] * p.ndim
        for t in range(STEPS):
            g = GRADS[t][name]
            u, m, v = adam(g, m, v, t + 1, b1, b2, 1e-8)
            if p.ndim > 1:
                statistics = [b2 * s + (1 - b2) * gram(g, i) for i, s in enumerate(statistics)]
                if t % interval == 0:
                    unbiased = [s / (1 - b2 ** (t + 1)) for s in statistics]
                    roots = [inverse_root(s, 2 * p.ndim) for s in unbiased]
                size, u = norm(u), rotate(m / (1 - b1 ** (t + 1)), roots)
                u = u * size / norm(u)
            p = p - lr(t) * (u + decay_of(name, wd) * p)
        return p

    check("shampoo", 0.01, reference, weight_decay=wd, b2=b2, update_interval=interval)


def test_soap():
    b1, b2, b3, wd, interval = 0.9, 0.95, 0.9, 0.1, 4

    def reference(name, p, lr):
        axes = range(p.ndim) if p.ndim > 1 else ()
        g = GRADS[0][name]  # the first gradient only sets the basis
        statistics = [(1 - b3) * gram(g, i) for i in axes]
        bases = [np.linalg.eigh(s)[1][:, ::-1] for s in statistics]
        m = v = np.zeros_like(p)
        for t in range(1, STEPS):
            g = GRADS[t][name]
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * rotate(g, [q.T for q in bases]) ** 2
            u = rotate(m, [q.T for q in bases]) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
            u = rotate(u, bases) / (1 - b1**t)
            p = p - lr(t) * (u + decay_of(name, wd) * p)
            statistics = [b3 * s + (1 - b3) * gram(g, i) for i, s in enumerate(statistics)]
            if t % interval == 0:
                for i in axes:
                    power = statistics[i] @ bases[i]
                    order = np.argsort(-np.sum(bases[i] * power, axis=0))
                    v = np.take(v, order, axis=i)
                    bases[i] = np.linalg.qr(power[:, order])[0]
        return p

    options = {"b1": b1, "b2": b2, "b3": b3, "update_interval": interval}
    check("soap", 0.01, reference, weight_decay=wd, **options)


def test_psgd_kron():
    b1, wd = 0.9, 0.1

    def noise(t, index, shape):
        with jax.enable_x64(True):
            key = jax.random.fold_in(jax.random.key(0), t)
            return np.asarray(jax.random.normal(jax.random.fold_in(key, index), shape))

    def whitening_step(q, grown, shrunk):
        if q.ndim == 1:
            grown, shrunk = np.diag(grown), np.diag(shrunk)
            return q - 0.1 * (grown - shrunk) * q / (np.abs(grown + shrunk).max() + 1e-30)
        total = grown + shrunk
        return q - 0.1 * np.triu(grown - shrunk) / (lower_bound(total) + 1e-30) @ q

    def reference(name, p, lr):
        flat = (-1, p.shape[-1]) if p.ndim > 1 else (-1, 1)
        rows, columns = p.reshape(flat).shape
        left = np.eye(rows) if p.ndim > 1 else np.ones(rows)
        right = np.eye(columns)
        m = np.zeros_like(p)
        for t in range(STEPS):
            m = b1 * m + (1 - b1) * GRADS[t][name]
            g = (m / (1 - b1 ** (t + 1))).reshape(flat)
            v = noise(t, sorted(SHAPES).index(name), g.shape if p.ndim > 1 else p.shape)
            full = left if left.ndim == 2 else np.diag(left)
            a = full @ g @ right.T
            b = np.linalg.inv(full).T @ v.reshape(flat) @ np.linalg.inv(right)
            left = whitening_step(left, a @ a.T, b @ b.T)
            if p.ndim > 1:
                right = whitening_step(right, a.T @ a, b.T @ b)
            full = left if left.ndim == 2 else np.diag(left)
            u = full.T @ full @ g @ right.T @ right
            u = u * min(1, 1.1 / (np.sqrt(np.mean(u * u)) + 1e-8))
            p = p - lr(t) * (u.reshape(p.shape) + decay_of(name, wd) * p)
        return p

    check("psgd_kron", 0.01, reference, lambda t: {"key": jax.random.key(0)}, weight_decay=wd)


def lower_bound(a):
    """Return PSGD's lower bound of the spectral norm: two steps of a power iteration."""
    largest = np.abs(a).max()
    a = a / largest
    row = a[np.argmax((a * a).sum(axis=1))]
    x = a @ row
    return largest * norm(a @ (x / norm(x)))


def test_lower_bound_of_the_spectral_norm():
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((6, 6)).astype(np.float32)
        a = x @ x.T
        bound = float(norm_lower_bound(jnp.asarray(a)))
        true = np.linalg.norm(a, 2)
        assert 0.8 * true <= bound <= true * (1 + 1e-5)


def quadratic(params):
    """Return the gradient of a quartic bowl; works on NumPy and on JAX."""
    return {k: 0.1 * p**3 + GRADS[0][k] for k, p in params.items()}


def test_sam():
    def both(params, lr):
        m = {k: np.zeros(s) for k, s in SHAPES.items()}
        for t in range(STEPS):
            grads = GRADS[t]
            size = np.sqrt(sum(norm(g) ** 2 for g in grads.values()))
            top = {k: p + 0.3 * grads[k] / size for k, p in params.items()}
            sharp = quadratic(top)
            for k in SHAPES:
                m[k] = 0.9 * m[k] + sharp[k] + decay_of(k, 0.01) * params[k]
            params = {k: p - lr(t) * m[k] for k, p in params.items()}
        return params

    def extra_args(t):
        return {"value_and_grad_fn": lambda params: (0.0, quadratic(params))}

    check(
        "sam+sgd",
        0.01,
        lambda name, p, lr: both(START, lr)[name],
        extra_args,
        sam_rho=0.3,
        weight_decay=0.01,
    )


def test_lookahead():
    def reference(name, p, lr):
        m = v = np.zeros_like(p)
        slow = p
        for t in range(STEPS):
            u, m, v = adam(GRADS[t][name], m, v, t + 1, 0.9, 0.999, 1e-8)
            p = p - lr(t) * (u + decay_of(name, 0.1) * p)
            if (t + 1) % 4 == 0:
                slow = slow + 0.6 * (p - slow)
                p = slow
        return p

    options = {"sync_period": 4, "slow_step_size": 0.6}
    check("lookahead+adamw", 0.01, reference, weight_decay=0.1, **options)
