"""Files of weights, by whatever framework they were written; without JAX and without PyTorch."""
