"""Properties of every registered backbone: a new entry needs no new test.

The default run tests the small twins; `-m slow` adds the paper's backbones at full size, and the
shapes of all other published sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import tiny_features
from helpers.filled import PAPER

import bocb_jax
from bocb_jax.engine.checkpoint import by_path
from bocb_jax.engine.passes import weights_of
from bocb_jax.errors import UserError
from bocb_jax.models.factory import MODELS
from bocb_jax.models.parameters import count_params, parameter_kinds
from bocb_jax.starting_weights import initial_weights

CLASSES, BATCH = 10, 4
NAMES = bocb_jax.list_models()
MINIS = [name for name in NAMES if name.endswith("_mini")]
LARGE = [name for name in NAMES if name not in (*MINIS, *PAPER)]
LISTED = [*MINIS, *PAPER, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
# The default run tests every property on two small models, `-m slow` on all.
QUICK = ("vgg_mini", "vit_mini")
# Where every backbone compiles several programs, one is enough for the default run.
SMALLEST = [
    name if name == "vit_mini" else pytest.param(name, marks=pytest.mark.slow) for name in MINIS
]
LEARNING = [*SMALLEST, *(pytest.param(name, marks=pytest.mark.slow) for name in PAPER)]
SAMPLE = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in [*MINIS]]


def build(name, seed=0, **changes):
    size = MODELS.get(name).image_size
    settings = {"num_classes": CLASSES, "image_size": size, **changes}
    return bocb_jax.create_model(name, rngs=nnx.Rngs(seed), **settings)


def images(name, batch=BATCH):
    side = MODELS.get(name).image_size
    return jax.random.normal(jax.random.key(1), (batch, side, side, 3))


def split(model):
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def loss_of(graph, labels=None):
    """Return a function (params, rest, images, key) -> (loss, batch statistics afterwards)."""

    def loss(params, rest, x, key):
        model = nnx.merge(graph, params, rest)
        logits = model(x, rngs=nnx.Rngs(dropout=key))
        target = jnp.arange(len(x)) % CLASSES if labels is None else labels
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], 1)
        return -picked.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return loss


def in_64_bits(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def mode(model, *, training):
    return nnx.view(
        model,
        deterministic=not training,
        use_running_average=not training,
        raise_if_not_found=False,
    )


def test_every_backbone_of_the_paper_is_registered():
    assert set(PAPER) <= set(NAMES)
    assert len(MINIS) >= 20


@pytest.mark.parametrize("name", LISTED)
def test_parameter_count_and_shapes_of_every_variant(name):
    entry = MODELS.get(name)
    model = nnx.eval_shape(lambda: build(name, num_classes=1000))
    if entry.card.num_params is not None:
        assert count_params(model) == entry.card.num_params
    if name in MINIS:
        assert count_params(nnx.eval_shape(lambda: build(name))) <= 500_000
    kinds = jax.tree.leaves(parameter_kinds(model))
    assert kinds.count("head") == 1
    assert len(kinds) == len(jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", LEARNING)
def test_every_parameter_learns(name):
    model = mode(build(name), training=True)
    graph, params, rest = split(model)
    # Small layer scales and zero-initialized gains block the gradient of the layers behind them.
    params = jax.tree.map(lambda p: p + 0.1 * jnp.ones_like(p) * (jnp.abs(p).max() < 1e-3), params)
    step = jax.jit(jax.value_and_grad(loss_of(graph), has_aux=True))
    (loss, stats), grads = step(params, rest, images(name), jax.random.key(0))
    assert jnp.isfinite(loss)
    for path, gradient in jax.tree.leaves_with_path(grads):
        assert jnp.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert jnp.abs(gradient).max() > 0, jax.tree_util.keystr(path)
    for path, after in jax.tree.leaves_with_path(stats):
        assert jnp.isfinite(after).all(), jax.tree_util.keystr(path)
    compiled = step._cache_size()
    step(params, rest, images(name), jax.random.key(1))
    assert step._cache_size() == compiled


@pytest.mark.parametrize("name", SMALLEST)
def test_evaluation_in_float32_and_bfloat16(name):
    x = images(name)
    logits = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, params, rest = split(mode(build(name, dtype=dtype), training=False))
        apply = jax.jit(lambda params, rest, x, graph=graph: nnx.merge(graph, params, rest)(x))
        logits[dtype] = apply(params, rest, x)
        assert logits[dtype].shape == (BATCH, CLASSES)
        assert logits[dtype].dtype == jnp.float32
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    wide, narrow = logits.values()
    assert jnp.isfinite(narrow).all()
    # bfloat16 has 8 significant bits; a hundred successive roundings lose a few of them.
    assert jnp.abs(wide - narrow).max() < 0.15 * jnp.abs(wide).max() + 0.05


@pytest.mark.parametrize("name", SMALLEST)
def test_training_and_evaluation_differ_where_they_should(name):
    model = build(name)
    x, has_stats = images(name), bool(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
    with_rngs = lambda m, seed: m(x, rngs=nnx.Rngs(dropout=seed))  # noqa: E731
    answers = [with_rngs(mode(model, training=False), seed) for seed in (0, 1)]
    np.testing.assert_array_equal(*answers)
    trained = with_rngs(mode(model, training=True), 0)
    if has_stats:
        assert not np.allclose(trained, answers[0], rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLE)
def test_features_are_maps(name):
    model = mode(build(name), training=False)
    side = MODELS.get(name).image_size
    maps = jax.eval_shape(lambda x: model.features(x), images(name))
    sides = [found.shape[1] for found in maps]
    assert maps
    assert all(len(found.shape) == 4 and found.shape[1] == found.shape[2] for found in maps)
    assert sides == sorted(sides, reverse=True)
    assert sides[0] <= side


@pytest.mark.parametrize("name", SAMPLE)
def test_abstract_and_concrete_initialization_agree(name):
    abstract = split(nnx.eval_shape(lambda: build(name)))[1:]
    concrete = split(build(name))[1:]
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(concrete), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    again = split(build(name))[1]
    jax.tree.map(np.testing.assert_array_equal, again, concrete[0])
    other = split(build(name, seed=1))[1]
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(concrete[0]), strict=True)
    )


@pytest.mark.parametrize("name", SAMPLE)
def test_starts_with_the_weights_of_a_run_of_the_same_seed(name):
    model = build(name, seed=jax.random.key(3))
    drawn = jax.tree.map(np.asarray, by_path(weights_of(model)))
    expected = initial_weights(
        name, {}, num_classes=CLASSES, image_size=MODELS.get(name).image_size,
        precision="float32", seed=3, shapes={path: w.shape for path, w in drawn.items()},
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_streams_go_on_after_a_model_as_if_it_drew_each_tensor_by_itself():
    streams, apart = nnx.Rngs(0, dropout=1), nnx.Rngs(0, dropout=1)
    model = bocb_jax.create_model("helpers.tiny_features:Net", num_classes=CLASSES, rngs=streams)
    other = tiny_features.Net(num_classes=CLASSES, rngs=apart)
    for stream in ("params", "dropout"):
        assert streams[stream]() == apart[stream]()
    for a, b in zip(*(jax.tree.leaves(split(m)[1]) for m in (model, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # tests/engine/test_population.py does it on a small net
@pytest.mark.parametrize("name", MINIS)
def test_seeds_trained_together_equal_seeds_trained_alone(name):
    """In float64, as some models amplify float32 rounding a thousandfold."""
    with jax.enable_x64(True):
        graph, *_ = split(mode(build(name), training=True))
        gradient = jax.value_and_grad(loss_of(graph), has_aux=True)
        drawn = [split(mode(build(name, seed=seed), training=True))[1:] for seed in (0, 1)]
        *states, x = in_64_bits([*drawn, images(name)])
        keys = jax.random.split(jax.random.key(2), 2)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        together = jax.jit(jax.vmap(gradient, (0, 0, None, 0)))(*stacked, x, keys)
        alone = jax.jit(gradient)
        for number, (state, key) in enumerate(zip(states, keys, strict=True)):
            single = alone(*state, x, key)
            largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(single[1]))
            for a, b in zip(
                jax.tree.leaves(jax.tree.map(lambda x, n=number: x[n], together)),
                jax.tree.leaves(single),
                strict=True,
            ):
                # Attention scores, logits and the loss are float32 even so.
                scale = max(largest, float(jnp.abs(b).max()))
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("name", SMALLEST)
def test_rematerialized_gradients_are_equal(name):
    graph, params, rest = split(mode(build(name), training=True))
    loss = loss_of(graph)
    arguments = (params, rest, images(name), jax.random.key(0))
    plain = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    remat = jax.jit(jax.grad(jax.checkpoint(loss), has_aux=True))(*arguments)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        scale = float(jnp.abs(a).max()) + 1e-6
        np.testing.assert_allclose(a, b, atol=1e-3 * scale)


def test_unknown_settings_are_named():
    with pytest.raises(
        UserError, match=r"resnet_mini has no setting depht\. It has: block, depths, widths"
    ):
        build("resnet_mini", depht=3)
    with pytest.raises(UserError, match="qkv_bias"):
        [build("vit_mini", qkv_bias=value) for value in (True, 1)]  # which are equal keys
    with pytest.raises(UserError, match="'official' and 'bocb', not 'timm'"):
        build("resnet_mini", variant="timm")


@pytest.mark.parametrize("rngs", [0, None, jax.random.key(0), nnx.Rngs(dropout=0)], ids=type)
def test_streams_of_another_kind_are_a_sentence(rngs):
    with pytest.raises(UserError, match=r"it must draw params, as nnx\.Rngs\(0\) does"):
        bocb_jax.create_model("mixer_mini", rngs=rngs)


def test_an_alias_is_the_same_model():
    assert count_params(nnx.eval_shape(lambda: build("deit_s"))) == count_params(
        nnx.eval_shape(lambda: build("vit_s"))
    )
