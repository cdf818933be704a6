"""How strongly backbones and optimizers bind each other, beginning with the published tables."""

__all__ = ["analyze"]


def __getattr__(name: str):
    # Imported when first asked for: the published tables alone need no statistics.
    if name == "analyze":
        from bocb_jax.coupling.analysis import analyze

        return analyze
    raise AttributeError(f"module 'bocb_jax.coupling' has no attribute '{name}'")


def __dir__():
    return __all__
