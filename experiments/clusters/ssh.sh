#!/bin/bash
# One run on several hosts that share a file system, one process per host, again until it has ended:
#     HOSTS="node1 node2" experiments/clusters/ssh.sh --model resnet50 --workdir /shared/runs
# Every host has the same environment with bocb in the PATH of a login shell. PORT of the first host
# must be open to the others.
read -ra hosts <<< "${HOSTS:?the names of the hosts, the first one coordinates}"
words=$(printf ' %q' "$@")
while true; do
  started=()
  for number in "${!hosts[@]}"; do
    ssh "${hosts[$number]}" "bash -lc $(printf '%q' "cd $(printf '%q' "$PWD") && exec bocb train$words \
      --parallel.coordinator ${hosts[0]}:${PORT:-12355} \
      --parallel.processes ${#hosts[@]} --parallel.process $number")" &
    started+=($!)
  done
  lost=
  code=0
  for process in "${started[@]}"; do
    wait "$process"
    ended=$?
    case $ended in
      0) ;;
      75 | 137 | 255) lost=1 ;; # a process or its host is gone; 255 is what ssh says of that
      *) code=$ended ;;
    esac
  done
  if [ $code -ne 0 ] || [ -z "$lost" ]; then exit $code; fi
  sleep "${PAUSE:-60}"
done
