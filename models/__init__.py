"""The backbones: one file a family, and `layers` for what several families share."""

import importlib
import pkgutil

from bocb_jax.models.factory import create_model, list_models, model_card, register_model

__all__ = ["create_model", "list_models", "model_card", "register_model"]

# A family registers its variants on import. All files here are imported, so a new one is found.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
