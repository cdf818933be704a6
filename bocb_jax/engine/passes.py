"""What a net computes on a batch, with its task: gradients in training, scores in evaluation.

Nothing here knows an optimizer, so all of them share one compilation of it. This is the only file
that splits and merges NNX modules; everywhere else parameters are nested dicts.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bocb_jax.engine.gradient_sums import in_float32
from bocb_jax.engine.state import Batch, Metrics, Params
from bocb_jax.engine.task import Outputs, Size, Targets, Task


@dataclasses.dataclass(frozen=True)
class GradientOptions:
    """How the gradient of a batch is taken."""

    clip_norm: float | None = None  # largest global norm of the gradient
    accumulate: int = 1  # parts of a batch, whose gradients are averaged
    # "float32", or "auto": as the layers compute them, in which they are summed over devices
    reduce_dtype: str = "auto"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From the images of a batch to the inputs of the model, on the device."""

    # (batch, key) -> augmented, normalized images, and the targets that the task's loss takes
    train: Callable[[Batch, jax.Array], tuple[jax.Array, Targets]]
    evaluation: Callable[[Batch], jax.Array]  # batch -> normalized images


class Microbatch(NamedTuple):
    """A part of a batch whose gradients are accumulated; with a leading axis, all parts of it."""

    images: jax.Array  # (batch, height, width, channels), normalized
    targets: Targets
    key: jax.Array  # of the dropout


class Forward(NamedTuple):
    """What a pass over a part gives besides its loss."""

    model_state: Params  # with BatchNorm's running statistics updated
    metrics: Metrics  # of the task
    outputs: Outputs


class Gradient(NamedTuple):
    """The gradient of a batch at a point, and what was computed on the way."""

    grads: Params  # mean over the parts, clipped
    norm: jax.Array  # (), global norm before clipping
    loss: jax.Array  # ()
    metrics: Metrics  # of the task, means over the parts
    model_state: Params  # after the pass


class Passes:
    """The passes of a net over a batch, pure and not yet compiled.

    Args:
      build_model: from `nnx.Rngs` to the net.
      preprocessing: for training and evaluation.
      create_task: from the abstract model to what it is trained for.
      options: of the gradient.
      platform: "cpu", "gpu" or "tpu", which it will be compiled for.
    """

    def __init__(
        self,
        build_model: Callable[[nnx.Rngs], nnx.Module],
        preprocessing: Preprocessing,
        create_task: Callable[[nnx.Module], Task],
        options: GradientOptions,
        platform: str,
    ):
        self._build_model = build_model
        self._preprocessing = preprocessing
        self.options = options
        self.platform = platform
        # Convolutions inside a loop are very slow on CPUs: there, the loop is unrolled.
        self._unroll = options.accumulate if platform == "cpu" else 1
        self.abstract_model = nnx.eval_shape(lambda: build_model(_Rngs(default=0)))
        self._train_graph = nnx.graphdef(view(self.abstract_model, training=True))
        self._eval_graph = nnx.graphdef(view(self.abstract_model, training=False))
        self._takes_rngs = (
            "rngs" in inspect.signature(type(self.abstract_model).__call__).parameters
        )
        self.task = create_task(self.abstract_model)

    @property
    def has_batch_stats(self) -> bool:
        """Whether training changes running statistics: BatchNorm's, where they are not fixed."""
        nodes = [node for _, node in nnx.iter_graph(self.abstract_model)]
        fixed = {
            id(part)
            for node in nodes
            if getattr(node, "fixed_statistics", False)
            for part in vars(node).values()
        }
        return any(isinstance(node, nnx.BatchStat) and id(node) not in fixed for node in nodes)

    def init_weights(self, key: jax.Array) -> Params:
        """Return random "params" and "model_state"."""
        return weights_of(self._build_model(_Rngs(default=key)))

    # --- Training ---------------------------------------------------------------------------------

    def prepare(self, step: jax.Array, batch: Batch, key: jax.Array) -> tuple[jax.Array, Targets]:
        """Return the augmented images and the targets of a batch at a step."""
        key = jax.random.fold_in(jax.random.fold_in(key, step), 0)
        return self._preprocessing.train(batch, key)

    def parts(self, step: jax.Array, batch: Batch, key: jax.Array) -> Microbatch:
        """Return the parts of a batch at a step, prepared.

        Args:
          step: number of the step.
          batch: "image" (batch, height, width, channels), uint8, and what the task needs.
          key: of the run; every random number follows from it and the number of the step.
        """
        images, targets = self.prepare(step, batch, key)
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, step), 1)
        return _split(images, targets, dropout_key, self.options.accumulate)

    def gradient_step(
        self, params: Params, model_state: Params, step: jax.Array, batch: Batch, key: jax.Array
    ) -> Gradient:
        """Return the gradient of a batch at a step; see `parts` and `gradient`."""
        return self.gradient(params, model_state, self.parts(step, batch, key))

    def gradient(self, params: Params, model_state: Params, parts: Microbatch) -> Gradient:
        """Return the gradient of the mean loss of a batch: averaged over its parts, then clipped.

        Every gradient of a step is taken here: the one that the optimizer is given, and those that
        it asks for at other points or for other labels.

        The parts go through the model in order and pass the running statistics on, starting from
        `model_state`.

        Args:
          params: the point.
          model_state: before the pass.
          parts: of the batch.
        """

        def accumulate(carry: Any, part: Microbatch) -> tuple[Any, None]:
            model_state, grads, loss, metrics = carry
            (part_loss, forward), part_grads = self._value_and_grad(params, model_state, part)
            grads = jax.tree.map(jnp.add, grads, part_grads)
            loss, metrics = loss + part_loss, jax.tree.map(jnp.add, metrics, forward.metrics)
            return (forward.model_state, grads, loss, metrics), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        metrics = {name: jnp.zeros(()) for name in self.task.metrics}
        carry = (model_state, zeros, jnp.zeros(()), metrics)
        if self.options.accumulate == 1:
            carry, _ = accumulate(carry, _first(parts))
        else:
            carry, _ = jax.lax.scan(accumulate, carry, parts, unroll=self._unroll)
        model_state, grads, loss, metrics = carry
        share = 1 / self.options.accumulate
        grads, loss, metrics = jax.tree.map(lambda x: x * share, (grads, loss, metrics))
        norm = optax.tree.norm(grads)
        return Gradient(self._clip(grads, norm), norm, loss, metrics, model_state)

    def _clip(self, grads: Params, norm: jax.Array) -> Params:
        """Return the gradient, scaled down to `clip_norm` where its global norm is larger."""
        if self.options.clip_norm is None:
            return grads
        scale = jnp.minimum(1.0, self.options.clip_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: g * scale, grads)

    def sample_targets(
        self, params: Params, model_state: Params, parts: Microbatch, key: jax.Array
    ) -> Targets:
        """Return targets (parts, batch // parts, ...) drawn from the model's predictions.

        The random numbers of an example do not depend on the number of parts.
        """

        def predict(model_state: Params, part: Microbatch) -> tuple[Params, Outputs]:
            _, forward = self._loss(params, model_state, part)
            return forward.model_state, jax.lax.stop_gradient(forward.outputs)

        if self.options.accumulate == 1:
            outputs = jax.tree.map(lambda x: x[None], predict(model_state, _first(parts))[1])
        else:
            _, outputs = jax.lax.scan(predict, model_state, parts, unroll=self._unroll)
        outputs, targets = jax.tree.map(_join_parts, (outputs, parts.targets))
        drawn = self.task.sample(key, outputs, targets, _size(parts.images))
        return _split_into_parts(drawn, self.options.accumulate)

    def _value_and_grad(
        self, params: Params, model_state: Params, part: Microbatch
    ) -> tuple[tuple[jax.Array, Forward], Params]:
        function = jax.value_and_grad(self._loss, has_aux=True)
        if self.options.reduce_dtype == "float32":
            function = in_float32(function)
        return function(params, model_state, part)

    def _loss(
        self, params: Params, model_state: Params, part: Microbatch
    ) -> tuple[jax.Array, Forward]:
        """Return the mean loss of a part in training mode."""
        outputs, model_state = self._apply(
            self._train_graph, params, model_state, part.images, part.key
        )
        loss, metrics = self.task.loss(outputs, part.targets, _size(part.images))
        return loss, Forward(model_state, metrics, outputs)

    def _apply(
        self,
        graph: nnx.GraphDef,
        params: Params,
        model_state: Params,
        images: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Outputs, Params]:
        """Return float32 outputs, and the model state after the pass."""
        outputs, model_state = self._call(graph, params, model_state, images, key)
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs), model_state

    def _call(
        self,
        graph: nnx.GraphDef,
        params: Params,
        model_state: Params,
        images: jax.Array,
        key: jax.Array | None,
    ) -> tuple[Any, Params]:
        """Return what the backbone returns, and the model state after the pass."""
        model = nnx.merge(graph, params, model_state)
        rngs = {"rngs": _Rngs(dropout=key)} if self._takes_rngs and key is not None else {}
        return model(images, **rngs), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    # --- Evaluation -------------------------------------------------------------------------------

    def evaluate(self, params: Params, model_state: Params, batch: Batch) -> Metrics:
        """Return what the host needs to score a batch, see `Task.evaluate`.

        Args:
          params: what is evaluated.
          model_state: BatchNorm's running statistics among it.
          batch: as in training, and "weight" (batch,), 0 for padding, else 1.
        """

        def forward(images: jax.Array) -> Outputs:
            return self._apply(self._eval_graph, params, model_state, images, None)[0]

        return self.task.evaluate(forward, self._preprocessing.evaluation(batch), batch)

    def update_batch_stats(
        self, params: Params, model_state: Params, batch: Batch, key: jax.Array
    ) -> Params:
        """Return BatchNorm's running statistics after one more training batch (precise BatchNorm).

        Args:
          params: at which they are taken; nothing is trained.
          model_state: the statistics so far.
          batch: as in training.
          key: of the augmentation and the dropout of this batch.
        """
        augment_key, dropout_key = (jax.random.fold_in(key, i) for i in range(2))
        images, _ = self._preprocessing.train(batch, augment_key)
        return self._apply(self._train_graph, params, model_state, images, dropout_key)[1]

    # --- Without computing ------------------------------------------------------------------------

    def abstract_outputs(self, image_shape: tuple[int, ...], *, training: bool) -> tuple[Any, Any]:
        """Return shapes and types of what the backbone returns, and of the model state after it.

        Args:
          image_shape: (batch, height, width, channels).
          training: in training mode, else in evaluation mode.
        """
        weights = weights_of(self.abstract_model)
        graph = self._train_graph if training else self._eval_graph
        images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
        key = jax.eval_shape(lambda: jax.random.key(0)) if training else None
        return jax.eval_shape(
            functools.partial(self._call, graph),
            weights["params"], weights["model_state"], images, key,
        )  # fmt: skip


def weights_of(model: nnx.Module) -> Params:
    """Return a model's "params" and "model_state" as nested dicts."""
    states: Any = nnx.state(model, nnx.Param, ...)
    params, model_state = states
    return {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(model_state)}


def _split(images: jax.Array, targets: Targets, key: jax.Array, parts: int) -> Microbatch:
    """Split a batch into (parts, batch // parts, ...), with one dropout key per part."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))
    return Microbatch(_split_into_parts(images, parts), _split_into_parts(targets, parts), keys)


def _split_into_parts(tree: Any, parts: int) -> Any:
    """Split arrays of (batch, ...) into (parts, batch // parts, ...).

    Part p takes the examples p, p + parts, ...: if the batch is sharded over devices, every part
    is sharded over all of them too.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape((-1, parts, *x.shape[1:])), 1, 0), tree)


def _join_parts(x: jax.Array) -> jax.Array:
    """Undo `_split_into_parts`."""
    return jnp.moveaxis(x, 0, 1).reshape((-1, *x.shape[2:]))


def _size(images: jax.Array) -> Size:
    height, width = images.shape[-3:-1]
    return height, width


def _first(parts: Microbatch) -> Microbatch:
    return jax.tree.map(lambda x: x[0], parts)


def view(model: nnx.Module, *, training: bool) -> nnx.Module:
    """Return the model in training or evaluation mode; layers without a mode stay as they are."""
    return nnx.view(
        model,
        deterministic=not training,
        use_running_average=not training,
        raise_if_not_found=False,
    )


class _Stream(nnx.RngStream):
    """A stream of keys, counted without Flax's sharding checks.

    Flax asks a traced counter for its sharding and catches the error. The message of that error
    takes a tenth of the time to trace a ViT.
    """

    def __call__(self) -> jax.Array:
        count = self.count.get_value()
        self.count.set_value(count + 1)
        return jax.random.fold_in(self.key.get_value(), count)


class _Rngs(nnx.Rngs):
    """Flax's streams of random keys, quick to trace."""

    def __init__(self, **keys: int | jax.Array):
        super().__init__(**keys)
        for name, key in keys.items():
            setattr(self, name, _Stream(key, tag=name))
