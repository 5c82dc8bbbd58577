"""Batches of tasks, and the sources that they come from."""

from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.classes import ClassTasks
from gradshare.tasks.groups import GroupTasks
from gradshare.tasks.image_tasks import ImageTasks, image_splits
from gradshare.tasks.normalization import Normalization
from gradshare.tasks.sinusoids import Sinusoids
from gradshare.tasks.source import Splits, TaskSource
from gradshare.tasks.store import ImageStore, Split

__all__ = [
    "ClassTasks",
    "GroupTasks",
    "ImageStore",
    "ImageTasks",
    "Normalization",
    "Sinusoids",
    "Split",
    "Splits",
    "TaskBatch",
    "TaskSource",
    "image_splits",
]
