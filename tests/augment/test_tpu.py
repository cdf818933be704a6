"""Every augmentation compiles ahead of time for a TPU, without one and without dynamic shapes.

Needs the package libtpu (`pip install 'jax[tpu]'`).
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILE = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bocb_jax.augment import mixing
from bocb_jax.augment.preprocess import Augmentation, preprocess

topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
jax.default_backend = lambda: "tpu"  # traces for the TPU
mesh = Mesh(np.array(topology.devices), ("data",))
split, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

def step(images, targets, key, size, policy, mix):
    images = preprocess(images, image_size=size, mean=(0.5,) * 3, std=(0.25,) * 3, key=key,
                        policy=policy)
    return mixing.mix(images, targets, key=key, policy=mix)

size, source, policy = eval(sys.argv[1])
step = jax.jit(functools.partial(
    step, size=size, policy=Augmentation(**policy), mix=mixing.Mixing(0.8, 1.0)))
key = jax.eval_shape(lambda: jax.random.key(0))
lowered = step.trace(
    jax.ShapeDtypeStruct((8, *source, 3), jnp.uint8, sharding=split),
    jax.ShapeDtypeStruct((8, 10), jnp.float32, sharding=split),
    jax.ShapeDtypeStruct((), key.dtype, sharding=everywhere),
).lower(lowering_platforms=("tpu",))
print(lowered.as_text())
print(lowered.compile().as_text())
"""
DEIT = {"flip": True, "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
# size of the result, size of the images, policy
POLICIES = {
    "pytorch": (32, (32, 32), {"pad": 4, "pad_mode": "reflect", "flip": True}),
    "digits": (32, (8, 8), {"shift": 0.125, "rotate": 12.0, "scale": 0.1}),
    "deit 32": (32, (32, 32), {"pad": 4, **DEIT}),
    "deit 224": (224, (256, 320), {"resized_crop": (0.08, 1.0), **DEIT}),
    "deit 3": (64, (64, 64), {"pad": 4, "three_augment": True, "color_jitter": 0.3}),
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("name", POLICIES)
def test_compiles_for_a_tpu(name):
    command = [sys.executable, "-c", COMPILE, repr(POLICIES[name])]
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "HloModule" in done.stdout
    assert not re.findall(r"tensor<[^>]*\?|\[<=", done.stdout)  # dynamic sizes
