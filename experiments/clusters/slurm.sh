#!/bin/bash
# One run on several nodes of a Slurm cluster, put back into the queue until it has ended:
#     sbatch experiments/clusters/slurm.sh --model resnet50 --opt lamb --workdir /shared/runs
# One task per GPU: JAX gives each task the GPU of its number on the node.
#SBATCH --job-name=bocb
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

srun bocb train --parallel.distributed --max-minutes 230 "$@"
code=$?
# 75: a node was lost (137 in the task that was killed); 143: the time is over, and the run saved.
case $code in
  75 | 137 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
