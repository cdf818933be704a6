"""What a sweep is made of: the study, its search, and the processes that run it.

spec.py     one TOML file -> `Study`
catalog.py  the names in it, looked up in a process of their own, since that takes JAX
search.py   which learning rates and weight decays come next
plan.py     a study's runs, pair by pair
worker.py   a process that trains one run after another
pool.py     such processes on this machine
cluster.py  the same on a Ray cluster
board.py    what a person sees meanwhile
"""
