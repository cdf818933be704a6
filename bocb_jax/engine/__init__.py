"""What trains a model: state, steps, sharding, checkpoints, metrics.

| module | holds |
|---|---|
| `passes`, `task`, `losses` | what a net computes: gradients, evaluation, precise BatchNorm |
| `gradient_sums` | gradients of bfloat16 layers that are summed in float32 |
| `steps`, `state` | what an optimizer makes of a gradient: the training step, EMA |
| `program`, `population`, `trainer` | the compiled functions of one run or of several together |
| `inference` | a net in evaluation mode, for weights that nothing trains |
| `sharding`, `processes` | the mesh of devices, and the processes of one run |
| `checkpoint`, `checksums` | saving and restoring with Orbax; which state is restored |
| `record`, `metrics` | resuming a run's progress, metrics and result where it was stopped |
| `run_dir`, `outcome` | who owns a run directory, and how a run ended |
| `signals`, `memory`, `compile_cache` | stops, memory, compiled programs of earlier processes |
| `own` | checks of a user's own backbone |
"""
