"""Images in, task batches out."""

from gradshare.episodes.batch import Normalization, TaskBatch
from gradshare.episodes.sampler import EpisodeSampler
from gradshare.episodes.store import ImageStore, Split

__all__ = ["EpisodeSampler", "ImageStore", "Normalization", "Split", "TaskBatch"]
