"""What a run is made of: state, step, sharding, checkpoints, metrics."""
