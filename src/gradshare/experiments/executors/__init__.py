"""Where the runs of an experiment are trained: on this machine, on Ray, or by Slurm.

`loop` runs named jobs on any `Executor`: it starts them, retries what was lost, and hands on what
they come to. Each executor is one file: `local`, `ray_cluster`, `slurm_array`. `choice` makes one
from what a user asked for; Ray and submitit are imported there, and only when they are.
"""
