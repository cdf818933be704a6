"""Sweeps: what a study asks for, and the processes that train it.

spec.py       one TOML file -> `Study`
resolve.py    the names in a study -> pairs of backbone and optimizer, in a process that loads JAX
search.py     which learning rates and weight decays to try next
plan.py       the runs of each pair
grouping.py   which runs of a pair train together
scheduler.py  hands runs to workers and takes in how they end
messages.py   what the sweep and its workers say to each other
pool.py       worker processes on this machine
cluster.py    workers on a Ray cluster
worker.py     the process that trains one run after another
measure.py    seconds per training image, from a few steps
estimate.py   what a sweep will take, for `--dry-run`
progress.py   what a person sees while a sweep runs
"""
