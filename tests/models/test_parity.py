"""Our weights in the references' own models: strict loading, and equal logits.

Needs the extra `parity` (PyTorch, timm); left out where it is not installed.
"""

import numpy as np
import pytest
from helpers import filled

import bocb_jax
from bocb_jax import read_weights, torch_weights

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

CLASSES = 100
REFERENCES = {
    name: bocb_jax.model_card(name).reference.split()
    for name in bocb_jax.list_models()
    if bocb_jax.model_card(name).reference.startswith(("timm ", "torchvision "))
}
QUICK = ("vit_ti", "resnet18")  # in every run where timm is there
PAPER = [name for name in filled.PAPER if name in REFERENCES]


def reference(name):
    library, known_as = REFERENCES[name]
    if library == "timm":
        return timm.create_model(known_as, num_classes=CLASSES).eval()
    from torchvision import models

    return getattr(models, known_as)(num_classes=CLASSES).eval()


def test_most_backbones_of_the_paper_are_tested():
    assert len(PAPER) == 13


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *PAPER,
        *(pytest.param(n, marks=pytest.mark.slow) for n in REFERENCES if n not in (*QUICK, *PAPER)),
    ],
)
def test_names_and_shapes_are_the_references(name):
    with torch.device("meta"):
        theirs = {
            n: tuple(tensor.shape)
            for n, tensor in reference(name).state_dict().items()
            if tensor.is_floating_point()  # not the counters of batches
        }
    assert filled.torch_shapes(filled.abstract(name, CLASSES, 224)) == theirs


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in PAPER)]
)
def test_exported_weights_give_the_references_logits(name, tmp_path):
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    ours = filled.build(name, num_classes=CLASSES, image_size=224)
    ours.eval()
    weights = torch_weights.to_torch_state_dict(ours)
    save_file(weights, tmp_path / "weights.safetensors")
    theirs = reference(name)
    theirs.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)

    images = filled.images(2, 224)
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)).numpy()
    logits = filled.run(ours, images)
    assert wanted.std() > 0
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * wanted.std())

    # And a checkpoint of theirs, with its counters and tables, comes back as it went.
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    again = filled.abstract(name, CLASSES, 224)
    assert torch_weights.load_torch_weights(again, read_weights(tmp_path / "weights.pth")) == []
    for n, weight in torch_weights.to_torch_state_dict(again).items():
        np.testing.assert_array_equal(weight, weights[n], err_msg=n)
