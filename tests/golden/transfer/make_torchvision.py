"""Make retinanet_torchvision.npz: torchvision's RetinaNet, both versions, on the CPU.

Needs torch and torchvision; made with 2.13.0 and 0.28.0. Weights and inputs are functions of name
and seed, as in helpers/golden_weights.py, and are not stored.
"""

import functools
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import resnet50
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

sys.path.append(str(pathlib.Path(__file__).parents[2]))
from helpers.golden_weights import fill, normal

SEED, CLASSES, SIZE = 21, 5, (64, 96)
MAPS = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))  # of a batch of 96x128
BOXES = [
    [[10, 12, 52, 50], [12, 14, 50, 52], [60, 5, 118, 88], [3, 60, 12, 70], [30, 30, 33, 90]],
    [[0, 0, 116, 59], [70, 20, 100, 50], [71, 22, 99, 47]],
]
LABELS = [[0, 1, 2, 3, 4], [1, 2, 0]]


def suppress(boxes, scores, labels, threshold):
    """Greedy NMS by class, for builds of torchvision whose compiled one does not load."""
    iou, kept = retinanet.box_ops.box_iou(boxes, boxes), []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(labels[i] != labels[j] or not iou[i, j] > threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept)


def detector(version):
    norm = FrozenBatchNorm2d if version == 1 else nn.BatchNorm2d
    extra = LastLevelP6P7(256 if version == 1 else 2048, 256)
    backbone = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=norm), 3, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    anchors = retinanet._default_anchorgen()
    if version == 1:
        return retinanet.RetinaNet(backbone, CLASSES, anchor_generator=anchors)
    head = retinanet.RetinaNetHead(
        backbone.out_channels,
        anchors.num_anchors_per_location()[0],
        CLASSES,
        norm_layer=functools.partial(nn.GroupNorm, 32),
    )
    head.regression_head._loss_type = "giou"
    return retinanet.RetinaNet(backbone, CLASSES, anchor_generator=anchors, head=head)


def filled(model):
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.from_numpy(fill(name, tuple(tensor.shape), SEED))
    model.load_state_dict(state)
    return model.eval()


def targets(first=2):
    return [
        {"boxes": torch.tensor(b, dtype=torch.float32), "labels": torch.tensor(y)}
        for b, y in list(zip(BOXES, LABELS, strict=True))[:first]
    ]


def head_maps(channels, name, scale, shift):
    """Random maps as the head returns them: (2, anchors, channels), requiring gradients."""
    whole = []
    for level, (h, w) in enumerate(MAPS):
        z = normal(f"{name}{level}", (2, h, w, 9 * channels), SEED) * scale + shift
        whole.append(torch.from_numpy(z.astype(np.float32).reshape(2, -1, channels)))
    return torch.cat(whole, 1).requires_grad_()


def make():
    found = {"seed": SEED}
    generator: AnchorGenerator = retinanet._default_anchorgen()
    found["base_anchors"] = np.stack([a.numpy() for a in generator.cell_anchors])
    images = ImageList(torch.zeros(2, 3, 96, 128), [(90, 120), (60, 117)])
    anchors = generator(images, [torch.zeros(2, 256, *m) for m in MAPS])
    found["anchors"] = anchors[0].numpy()
    for version in (1, 2):
        model = filled(detector(version))
        for name, value in whole_net(model).items():
            found[f"v{version}_{name}"] = value
        cls, reg = head_maps(CLASSES, "cls", 1.5, -3), head_maps(4, "reg", 0.3, 0)
        outputs = {"cls_logits": cls, "bbox_regression": reg}
        losses = model.compute_loss(targets(), outputs, anchors)
        sum(losses.values()).backward()
        found[f"v{version}_losses"] = np.array([v.item() for v in losses.values()])
        found[f"v{version}_grad_reg"] = reg.grad.numpy()
        if version == 1:
            found["grad_cls"] = cls.grad.numpy()
            matched = [
                model.proposal_matcher(retinanet.box_ops.box_iou(t["boxes"], a)).numpy()
                for t, a in zip(targets(), anchors, strict=True)
            ]
            found["matched"] = np.stack(matched)
            counts = [9 * h * w for h, w in MAPS]
            split = {k: list(v.detach().split(counts, 1)) for k, v in outputs.items()}
            retinanet.box_ops.batched_nms = suppress
            kept = model.postprocess_detections(
                split, [list(a.split(counts)) for a in anchors], images.image_sizes
            )
            for i, detections in enumerate(kept):
                for name, value in detections.items():
                    found[f"{name}{i}"] = value.numpy()
    return found


def whole_net(model):
    x = torch.from_numpy(normal("input", (2, 3, *SIZE), SEED))
    features = list(model.backbone(x).values())
    outputs = model.head(features)
    anchors = model.anchor_generator(ImageList(x, [SIZE, SIZE]), features)
    scale = torch.tensor([SIZE[1] / 128, SIZE[0] / 96] * 2)
    boxes = [t | {"boxes": t["boxes"] * scale} for t in targets()]
    losses = model.compute_loss(boxes, outputs, anchors)
    sum(losses.values()).backward()
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return {
        "names": np.array([n for n, v in model.state_dict().items() if v.is_floating_point()]),
        "cls": outputs["cls_logits"].detach().numpy(),
        "reg": outputs["bbox_regression"].detach().numpy(),
        "net_losses": np.array([v.item() for v in losses.values()]),
        "learned": np.array([name for name, _ in learned]),
        "grad_norm": np.array([p.grad.double().norm().item() for _, p in learned]),
        "num_params": sum(p.numel() for p in model.parameters()),
    }


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("retinanet_torchvision.npz")
    np.savez_compressed(path, **make())
