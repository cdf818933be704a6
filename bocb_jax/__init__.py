"""Which optimizer goes with which vision backbone, and how strongly does the choice bind you?

>>> import jax, jax.numpy as jnp, optax
>>> from flax import nnx
>>> import bocb_jax
>>> model = bocb_jax.create_model("mixer_mini", num_classes=10, image_size=32, rngs=nnx.Rngs(0))
>>> graph, params, rest = nnx.split(model, nnx.Param, ...)
>>> params = nnx.to_pure_dict(params)
>>> optimizer = bocb_jax.create_optimizer("lamb", learning_rate=5e-3)
>>> opt_state = optimizer.init(params)
>>> images, labels = jnp.ones((8, 32, 32, 3)), jnp.arange(8)
>>> def loss_fn(params):
...     logits = nnx.merge(graph, params, rest, copy=True)(images)
...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
>>> @jax.jit
... def step(params, opt_state):
...     loss, grads = jax.value_and_grad(loss_fn)(params)
...     updates, opt_state = optimizer.update(grads, opt_state, params)
...     return optax.apply_updates(params, updates), opt_state, loss
>>> params, opt_state, first = step(params, opt_state)
>>> params, opt_state, second = step(params, opt_state)
>>> bool(second < first)
True
"""

import importlib
import os

# In a bare clone the backbones lie beside this package, in `models/`; in an installed wheel they
# lie inside it. Adding the clone's root to the search path makes both `bocb_jax.models`.
_root = os.path.dirname(__path__[0])
if os.path.exists(os.path.join(_root, "models", "factory.py")):
    __path__.append(_root)

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "bocb_jax.models",
    "list_models": "bocb_jax.models",
    "model_card": "bocb_jax.models",
    "register_model": "bocb_jax.models",
    "create_optimizer": "bocb_jax.optim",
    "list_optimizers": "bocb_jax.optim",
    "optimizer_info": "bocb_jax.optim",
    "register_optimizer": "bocb_jax.optim",
    "load_torch_weights": "bocb_jax.torch_weights",
    "to_torch_state_dict": "bocb_jax.torch_weights",
    "read_weights": "bocb_jax.weight_files.read",
}
_RENAMED = {"published": ("bocb_jax.paper", "table")}
__all__ = ["__version__", *sorted([*_PUBLIC, *_RENAMED])]


def __getattr__(name: str):
    # Imported when first asked for: `import bocb_jax` alone starts no JAX backend.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _RENAMED:
        module, original = _RENAMED[name]
        return getattr(importlib.import_module(module), original)
    raise AttributeError(f"module 'bocb_jax' has no attribute '{name}'")


def __dir__():
    return __all__
