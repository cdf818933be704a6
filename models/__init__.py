"""The backbones: one file a family, `layers` for what two or more families share."""

import importlib
import pkgutil

from bocb_jax.models.factory import create_model, list_models, model_card, register_model

__all__ = ["create_model", "list_models", "model_card", "register_model"]

# Every family registers its variants when it is imported; a new file needs no line here.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
