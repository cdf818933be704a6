"""What trains a model: state, steps, sharding, checkpoints, metrics.

| module | holds |
|---|---|
| `steps`, `losses`, `state` | training step, EMA, precise BatchNorm; evaluation |
| `program`, `population`, `trainer` | the compiled functions of one run or of several together |
| `sharding`, `processes` | the mesh of devices, and the processes of one run |
| `checkpoint`, `checksums` | saving and restoring with Orbax; which state is restored |
| `record`, `metrics` | resuming a run's progress, metrics and result where it was stopped |
| `run_dir`, `outcome` | who owns a run directory, and how a run ended |
| `signals`, `memory`, `compile_cache` | stops, memory, compiled programs of earlier processes |
| `own` | checks of a user's own backbone |
"""
