"""What trains a model: state, steps, sharding, checkpoints, metrics."""
