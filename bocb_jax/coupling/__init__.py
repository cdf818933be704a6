"""How strongly backbones and optimizers bind each other, beginning with the published tables."""
