"""Every backbone equals its reference: logits, running statistics, parameter counts, weights.

`golden/backbones_*` holds outputs of the references in PyTorch. Weights and images are not stored:
both sides generate them from the tensor's name and a seed.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.golden_weights import fill, normal

import bocb_jax
from bocb_jax import torch_weights
from bocb_jax.models.parameters import count_params

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("backbones_*/*.npz"))
# Not in the default run: siblings of models that are in it, those that compile slowly, whose
# families have smaller goldens in test_<family>.py, and the 133 million weights of VGG.
SLOW = {
    "224/attentionformer_s12",
    "224/convformer_s12",
    "224/convnext_t",
    "224/convnextv2_t",
    "224/efficientnet_b0",
    "224/repvgg_a1",
    "224/resnet101",
    "224/resnet50",
    "224/densenet121",
    "32/convnextv2_t",
    "32/densenet121",
    "224/moganet_s",
    "32/moganet_s",
    "224/transnext_t",
    "224/unireplknet_t",
    "224/vgg13_bn",
}
# With these weights the third stage of UniRepLKNet reaches 1e7 in evaluation, and rounding grows:
# the reference differs from itself by 2e-3 between one and two threads, and so do ours from ours
# in float64 by 5e-3. test_unireplknet.py has a golden without that; training is exact.
EVALUATION = {"224/unireplknet_t": 2e-2}


def case_id(path):
    return f"{path.parent.name.removeprefix('backbones_')}/{path.stem}"


def case(path):
    marks = [pytest.mark.slow] if case_id(path) in SLOW else []
    return pytest.param(path, id=case_id(path), marks=marks)


def run(model, images, *, training):
    """Return the logits and, after a training-mode pass without dropout, the running statistics."""
    model = nnx.view(
        model,
        raise_if_not_found=False,
        deterministic=True,
        use_running_average=not training,
    )
    graph, state = nnx.split(model)

    @jax.jit
    def apply(state, images):
        model = nnx.merge(graph, state, copy=True)
        logits = model(images)
        return logits, nnx.state(model, nnx.BatchStat)

    logits, statistics = apply(state, images)
    nnx.update(model, statistics)
    return np.asarray(logits), model


@pytest.mark.parametrize("path", [case(path) for path in FILES])
def test_equals_the_reference(path):
    golden = np.load(path)
    size, seed = int(golden["image_size"]), int(golden["seed"])
    shapes = dict(
        zip(golden["names"].tolist(), map(json.loads, golden["shapes"].tolist()), strict=True)
    )
    weights = {name: fill(name, shape, seed) for name, shape in shapes.items()}
    model = nnx.eval_shape(  # all values come from the golden
        lambda: bocb_jax.create_model(path.stem, num_classes=100, image_size=size, rngs=nnx.Rngs(0))
    )
    torch_weights.load_torch_weights(model, weights)

    returned = torch_weights.to_torch_state_dict(model)
    assert returned.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(returned[name], weight, err_msg=name)
    learned = [name for name in shapes if ".running_" not in name]
    assert count_params(model) == sum(weights[name].size for name in learned)

    images = normal("input", (4, 3, size, size), seed).transpose(0, 2, 3, 1)
    logits, _ = run(model, images, training=False)
    tolerance = EVALUATION.get(case_id(path), 1e-4) * golden["logits"].std()
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=tolerance)

    if "train_logits" in golden:
        logits, trained = run(model, images, training=True)
        tolerance = 1e-3 * golden["train_logits"].std()
        np.testing.assert_allclose(logits, golden["train_logits"], rtol=0, atol=tolerance)
        statistics = torch_weights.to_torch_state_dict(trained)
        names = golden["stat_names"].tolist()
        assert sorted(names) == sorted(set(shapes) - set(learned))
        sums = [statistics[name].astype(np.float64).sum() for name in names]
        np.testing.assert_allclose(sums, golden["stat_sums"], rtol=1e-4, atol=1e-3)
