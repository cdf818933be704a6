#!/bin/bash
# One run on all hosts of a TPU slice, as gcloud knows it, again until it has ended:
#     TPU=my-v5e ZONE=us-west4-a experiments/clusters/tpu.sh --model vit_s --workdir /shared/runs
# Every host has the same environment with bocb in the PATH of a login shell, and /shared mounted.
words=$(printf ' %q' "$@")
while true; do
  gcloud compute tpus tpu-vm ssh "${TPU:?the name of the TPU}" --zone "${ZONE:?its zone}" \
    --worker=all --command "bash -lc $(printf '%q' "exec bocb train --parallel.distributed$words")"
  code=$?
  case $code in
    75 | 137 | 143 | 255) sleep "${PAUSE:-60}" ;; # a host was lost or taken away; the run goes on
    *) exit $code ;;
  esac
done
