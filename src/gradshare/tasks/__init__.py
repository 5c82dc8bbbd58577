"""Images in, task batches out."""

from gradshare.tasks.batch import Normalization, TaskBatch
from gradshare.tasks.sampler import EpisodeSampler
from gradshare.tasks.store import ImageStore, Split

__all__ = ["EpisodeSampler", "ImageStore", "Normalization", "Split", "TaskBatch"]
