"""What models, optimizers and data cost on this machine."""
