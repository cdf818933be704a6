"""A backbone of three convolutions, for tests of what is put around one: compiled in seconds."""

import jax
from flax import nnx


class Net(nnx.Module):
    """Maps of strides 4, 8 and 16."""

    def __init__(self, *, num_classes, rngs):
        self.stem = nnx.Conv(3, 8, (4, 4), 4, rngs=rngs)
        self.stages = nnx.List([nnx.Conv(8, 8, (2, 2), 2, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, num_classes, rngs=rngs)

    def features(self, x, *, rngs=None):
        maps = [jax.nn.relu(self.norm(self.stem(x)))]
        for stage in self.stages:
            maps.append(jax.nn.relu(stage(maps[-1])))
        return maps

    def __call__(self, x):
        return self.fc(self.features(x)[-1].mean((1, 2)))
