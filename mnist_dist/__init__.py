"""The same training at any number of processes. `core` is the exact part, for any data and model; `task` is MNIST on
top of it, `run` what surrounds a training, and `tools` are the smaller commands. Imports go one way: tools and the
scripts, run, task, core.
"""
