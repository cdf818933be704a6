"""Run ids stay what they were: a new version finds the folders of an earlier one."""

import pytest

from bocb_jax.config import TrainConfig, from_dict, run_id

# Settings, and the ids that the version before pydantic checked them gave.
IDS = [
    ({}, "digits-vit_s-adamw-s0-d5a7f085"),
    ({"model": "resnet_mini", "opt": "sgd"}, "digits-resnet_mini-sgd-s0-ae3756e1"),
    ({"step": {"reduce_dtype": "auto"}}, "digits-vit_s-adamw-s0-d5a7f085"),
    ({"lr": 1}, "digits-vit_s-adamw-s0-6cff5e43"),
    ({"lr": 0.1, "weight_decay": 0}, "digits-vit_s-adamw-s0-c91218be"),
    ({"epochs": 3, "batch_size": 128, "seed": 7}, "digits-vit_s-adamw-s7-7825c803"),
    ({"model_args": {"stem": "cifar", "depths": [1, 2]}}, "digits-vit_s-adamw-s0-28422392"),
    ({"opt_args": {"b1": 0.8, "nesterov": True}}, "digits-vit_s-adamw-s0-de8d7e1b"),
    ({"test": False}, "digits-vit_s-adamw-s0-cb91c416"),
    (
        {"schedule": {"name": "step", "boundaries": [0.3, 0.6], "factor": 0.2}},
        "digits-vit_s-adamw-s0-d00a76d1",
    ),
    ({"schedule": {"warmup_epochs": 5, "end_fraction": 0}}, "digits-vit_s-adamw-s0-c490041f"),
    ({"step": {"clip_norm": 5, "ema": 0.99}}, "digits-vit_s-adamw-s0-7b39839e"),
    (
        {"step": {"settling_batches": 3, "accumulate": 2}, "batch_size": 64},
        "digits-vit_s-adamw-s0-eb7e9646",
    ),
    (
        {
            "augment": {
                "resized_crop": [0.08, 1],
                "flip": True,
                "rand_augment": "rand-m9-mstd0.5-inc1",
            }
        },
        "digits-vit_s-adamw-s0-61781c09",
    ),
    (
        {"augment": {"only": True, "pad": 4, "pad_mode": "reflect", "mixup": 1, "cutmix": 0.5}},
        "digits-vit_s-adamw-s0-934df7b7",
    ),
    (
        {
            "data": {
                "crop_ratio": 0.875,
                "split_seed": 3,
                "workers": 2,
                "repeats": 3,
                "dir": "~/data",
            }
        },
        "digits-vit_s-adamw-s0-bf6d9557",
    ),
    (
        {"dataset": "folder:/data/x", "image_size": 224, "test_size": 256},
        "folder_data_x-vit_s-adamw-s0-730d0799",
    ),
    ({"hparams": "paper", "protocol": "paper", "recipe": "deit"}, "digits-vit_s-adamw-s0-d430ed12"),
    ({"parallel": {"fsdp": 2, "devices": 4}}, "digits-vit_s-adamw-s0-c4feddd9"),
    ({"log": {"evaluate_every_epochs": 5, "every_steps": 1}}, "digits-vit_s-adamw-s0-0beb3fbd"),
    (
        {"init": "weights/vit", "precision": "bfloat16", "on_corrupt": "skip"},
        "digits-vit_s-adamw-s0-5982babc",
    ),
    (
        {
            "augment": {
                "rotate": 12,
                "shift": 0,
                "scale": 0.1,
                "erase": 1,
                "three_augment": False,
                "color_jitter": 0.3,
            }
        },
        "digits-vit_s-adamw-s0-61e8ff21",
    ),
    (
        {
            "dataset": "tfds:cars",
            "model": "mynets:MyNet",
            "opt": "sam+sgd",
            "label": "x",
            "study": "y",
            "run_id": None,
            "workdir": "z",
        },
        "tfds_cars-mynets_MyNet-sam+sgd-s0-9cf64be7",
    ),
    (
        {
            "parallel": {"distributed": True, "coordinator": "a:1", "processes": 2, "process": 0},
            "checkpoint": {"every_steps": 3, "discard": True},
        },
        "digits-vit_s-adamw-s0-d5a7f085",
    ),
]


@pytest.mark.parametrize(("settings", "name"), IDS, ids=[name for _, name in IDS])
def test_run_ids_stay(settings, name):
    assert run_id(from_dict(TrainConfig, settings)) == name
