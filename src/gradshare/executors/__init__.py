"""Where runs are trained: anything with `submit(function, *args)` that returns a future."""

from gradshare.executors.local import LocalExecutor, LostWorkerError
from gradshare.executors.ray_cluster import RayExecutor
from gradshare.executors.slurm import slurm_executor

__all__ = ["LocalExecutor", "LostWorkerError", "RayExecutor", "slurm_executor"]
