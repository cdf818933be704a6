"""The compiled programs of a run: initialise, train one step, evaluate one batch.

The only file that takes Flax modules apart: everything outside handles plain nested dicts. The
learning rate, the weight decay and the seed are inputs, so one program serves all their values.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from bocb_jax.engine import losses
from bocb_jax.engine.sharding import batch_sharding, replicated, state_sharding
from bocb_jax.engine.state import TrainState

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What one training step does beside the plain gradient."""

    loss: str = "cross_entropy"  # a name of `losses.loss`
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None


@dataclasses.dataclass(frozen=True)
class Pure:
    """The functions of the same names in `Program`, before they are compiled."""

    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[..., dict[str, jax.Array]]
    settle: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """Compiled functions, and where their state lives.

    `init(key, learning_rate, weight_decay, start=None)` -> state, from random weights or from
    `start`, a tree like that of `weights`;
    `prepare(step, batch, key)` -> (images, targets), as `train_step` makes them of that batch;
    `train_step(state, batch, key)` -> (state, metrics), with `state` donated;
    `eval_step(state, batch)` -> sums over the batch;
    `weights(state)` -> a copy of what answers for the run: "params" and "model_state";
    `settle(state, model_state, batch, key)` -> BatchNorm's running statistics, one training batch
    further at the weights that are evaluated; None for a backbone without any.
    """

    init: Callable[..., TrainState]
    prepare: Callable[..., tuple[jax.Array, jax.Array]]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[..., dict[str, jax.Array]]
    weights: Callable[[TrainState], dict[str, Any]]
    settle: Callable[..., Any] | None
    evaluates_others: bool  # whether other weights are evaluated than are trained
    abstract_state: TrainState  # shapes, types and shardings
    mesh: Mesh
    pure: Pure

    # A loop that trains one run or several together asks these; a run alone is its only member.

    @property
    def batch_sharding(self) -> NamedSharding:
        """Where batches are to be put."""
        return batch_sharding(self.mesh)

    def stack(self, trees: list[Any]) -> Any:
        """What `train_step` takes of the keys and of the batches of the members."""
        (tree,) = trees
        return tree

    stack_states = stack

    def member(self, state: TrainState, place: int) -> TrainState:
        """The state of one member."""
        del place
        return state

    @property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))


def make_program(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    make_optimizer: Callable[[Any], optax.GradientTransformationExtraArgs],
    set_hyperparameters: Callable[..., Any],
    learning_rate: Callable[[Any], jax.Array],
    prepare_train: Callable[..., tuple[jax.Array, jax.Array]],
    prepare_eval: Callable[[jax.Array], jax.Array],
    settings: StepSettings,
    mesh: Mesh,
    evaluation_parameters: Callable[[Any, Any], Any] | None = None,
) -> Program:
    """Builds the three programs; nothing is compiled before they are called.

    Args:
      build_model: from `nnx.Rngs` to the backbone.
      make_optimizer: from the abstract model to the transformation, since decay masks and axis
        metadata come from the kinds of its layers.
      set_hyperparameters: (optimizer state, learning_rate=, weight_decay=) -> optimizer state.
      learning_rate: optimizer state -> the rate that the last update used.
      prepare_train: (uint8 images, labels, key) -> augmented, normalized float images, and targets:
        labels, or probabilities where images are mixed.
      prepare_eval: uint8 images -> normalized float images.
      settings: the rest of the step.
      mesh: devices.
      evaluation_parameters: (optimizer state, params) -> the weights to evaluate, for optimizers
        that train at another point than they answer with.
    """
    abstract = nnx.eval_shape(lambda: build_model(_Rngs(default=0)))
    train_graph = nnx.graphdef(_view(abstract, training=True))
    eval_graph = nnx.graphdef(_view(abstract, training=False))
    optimizer = make_optimizer(abstract)
    takes_rngs = "rngs" in inspect.signature(type(abstract).__call__).parameters

    def forward(graph, params, model_state, images, key):
        model = nnx.merge(graph, params, model_state)
        rngs = {"rngs": _Rngs(dropout=key)} if takes_rngs and key is not None else {}
        logits = model(images, **rngs)
        return logits.astype(jnp.float32), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    def draw(key):
        return weights_of(build_model(_Rngs(default=key)))

    def begin(start, learning_rate, weight_decay):
        params, model_state = start["params"], start["model_state"]
        opt_state = set_hyperparameters(
            optimizer.init(params), learning_rate=learning_rate, weight_decay=weight_decay
        )
        ema = jax.tree.map(jnp.copy, params) if settings.ema is not None else None
        state = TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state, ema)
        return jax.tree.map(_strongly_typed, state)

    def loss_fn(params, model_state, images, targets, key):
        logits, model_state = forward(train_graph, params, model_state, images, key)
        loss = losses.loss(settings.loss, logits, targets, settings.label_smoothing).mean()
        return loss, (model_state, losses.correct(logits, targets).mean(), logits)

    def prepare(step: jax.Array, batch: Batch, key: jax.Array):
        key = jax.random.fold_in(jax.random.fold_in(key, step), 0)
        return prepare_train(batch["image"], batch["label"], key)

    def train_step(state: TrainState, batch: Batch, key: jax.Array):
        images, targets = prepare(state.step, batch, key)
        key = jax.random.fold_in(key, state.step)
        dropout_key, optimizer_key = (jax.random.fold_in(key, i) for i in (1, 2))
        parts = _split(images, targets, dropout_key, settings.accumulate)
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

        def accumulate(carry, part):
            model_state, grads, loss, accuracy = carry
            (part_loss, aux), part_grads = value_and_grad(state.params, model_state, *part)
            grads = jax.tree.map(jnp.add, grads, part_grads)
            return (aux[0], grads, loss + part_loss, accuracy + aux[1]), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        carry = (state.model_state, zeros, jnp.zeros(()), jnp.zeros(()))
        if settings.accumulate == 1:
            carry, _ = accumulate(carry, jax.tree.map(lambda x: x[0], parts))
        else:
            # Convolutions inside a loop are very slow on CPUs; there the loop is written out.
            unroll = settings.accumulate if jax.default_backend() == "cpu" else 1
            carry, _ = jax.lax.scan(accumulate, carry, parts, unroll=unroll)
        model_state, grads, loss, accuracy = carry
        share = 1 / settings.accumulate
        grads, loss, accuracy = jax.tree.map(lambda x: x * share, (grads, loss, accuracy))

        grad_norm = optax.tree.norm(grads)
        if settings.clip_norm is not None:
            scale = jnp.minimum(1.0, settings.clip_norm / (grad_norm + 1e-6))
            grads = jax.tree.map(lambda g: g * scale, grads)

        # What some optimizers ask for beside the gradient; unused, it costs nothing.
        first = jax.tree.map(lambda x: x[0], parts)

        def value_and_grad_fn(params):
            (value, _), gradient = value_and_grad(params, state.model_state, *first)
            return value, gradient

        def sampled_label_grad_fn(params, key):
            part_images, _, part_key = first
            logits = loss_fn(params, state.model_state, *first)[1][2]
            labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            part = (part_images, labels, part_key)
            return value_and_grad(params, state.model_state, *part)[1]

        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            state.params,
            value=loss,
            key=optimizer_key,
            batch_size=len(first[1]),  # examples behind the gradients of the two functions
            value_and_grad_fn=value_and_grad_fn,
            sampled_label_grad_fn=sampled_label_grad_fn,
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if settings.ema is not None:
            ema = optax.incremental_update(params, ema, 1 - settings.ema)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": jnp.asarray(learning_rate(opt_state), jnp.float32),
            "grad_norm": grad_norm,
        }
        return TrainState(state.step + 1, params, model_state, opt_state, ema), metrics

    def eval_step(state: TrainState, batch: Batch):
        params = evaluated(state)
        images = prepare_eval(batch["image"])
        logits, _ = forward(eval_graph, params, state.model_state, images, None)
        weight = batch["weight"]
        return {
            "loss": jnp.sum(weight * losses.cross_entropy(logits, batch["label"])),
            "correct": jnp.sum(weight * losses.correct(logits, batch["label"])),
            "count": jnp.sum(weight),
        }

    def evaluated(state: TrainState):
        if settings.ema is not None:
            return state.ema
        if evaluation_parameters is not None:
            return evaluation_parameters(state.opt_state, state.params)
        return state.params

    def settle(state: TrainState, model_state, batch: Batch, key):
        augment_key, dropout_key = (jax.random.fold_in(key, i) for i in range(2))
        images, _ = prepare_train(batch["image"], batch["label"], augment_key)
        return forward(train_graph, evaluated(state), model_state, images, dropout_key)[1]

    def weights(state: TrainState):
        return jax.tree.map(
            jnp.copy, {"params": evaluated(state), "model_state": state.model_state}
        )

    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    drawn = weights_of(abstract)
    shapes = jax.eval_shape(begin, drawn, scalar, scalar)
    shardings = state_sharding(mesh, shapes)
    everywhere = replicated(mesh)
    has_statistics = bool(nnx.to_pure_dict(nnx.state(abstract, nnx.BatchStat)))
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    jit_draw = jax.jit(
        draw,
        out_shardings=state_sharding(mesh, drawn),
        compiler_options=options_of_drawing(mesh.devices.flat[0].platform),
    )
    jit_begin = jax.jit(begin, out_shardings=shardings, donate_argnums=0)

    def init(key, learning_rate, weight_decay, start=None):
        start = jit_draw(key) if start is None else start
        return jit_begin(start, learning_rate, weight_decay)

    return Program(
        init=init,
        prepare=jax.jit(
            prepare,
            in_shardings=(everywhere, batch_sharding(mesh), everywhere),
            out_shardings=batch_sharding(mesh),
        ),
        train_step=jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(mesh), everywhere),
            out_shardings=(shardings, everywhere),
        ),
        eval_step=jax.jit(
            eval_step,
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=everywhere,
        ),
        weights=jax.jit(weights),
        settle=jax.jit(
            settle,
            in_shardings=(shardings, shardings.model_state, batch_sharding(mesh), everywhere),
            out_shardings=shardings.model_state,
        )
        if has_statistics
        else None,
        evaluates_others=settings.ema is not None or evaluation_parameters is not None,
        abstract_state=abstract_state,
        mesh=mesh,
        pure=Pure(train_step, eval_step, settle),
    )


def _strongly_typed(x: jax.Array) -> jax.Array:
    """`jnp.full(8, 0.1)` has a weak type and the next step's does not: that would compile anew."""
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x


def options_of_drawing(platform: str) -> dict[str, Any] | None:
    """Compiler options of the program that draws random weights.

    It takes longer to compile than a training step and runs once, so that on CPUs LLVM need not
    optimize it; and it is a program of its own, the same for all optimizers.
    """
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else None


class _Stream(nnx.RngStream):
    """Flax's keys; but its own way to count asks a traced counter for its sharding each time, and
    the message of the error that this raises takes a tenth of the tracing of a ViT."""

    def __call__(self) -> jax.Array:
        count = self.count.get_value()
        self.count.set_value(count + 1)
        return jax.random.fold_in(self.key.get_value(), count)


class _Rngs(nnx.Rngs):
    """Flax's streams of random keys, made for tracing."""

    def __init__(self, **keys: int | jax.Array):
        super().__init__(**keys)
        for name, key in keys.items():
            setattr(self, name, _Stream(key, tag=name))


def weights_of(model: nnx.Module) -> dict[str, Any]:
    """A model's "params" and "model_state" as nested dicts."""
    _, params, model_state = nnx.split(model, nnx.Param, ...)
    return {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(model_state)}


def _view(model: nnx.Module, *, training: bool) -> nnx.Module:
    """The same model in training or evaluation mode; layers without a mode stay as they are."""
    return nnx.view(
        model,
        deterministic=not training,
        use_running_average=not training,
        raise_if_not_found=False,
    )


def _split(images, targets, key, parts: int):
    """Each array as (parts, batch // parts, ...), with one dropout key a part.

    Part p takes the examples p, p + parts, ...: on a batch that is split over devices, every part
    is then split over them as well.
    """

    def split(x):
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))
    return split(images), split(targets), keys
