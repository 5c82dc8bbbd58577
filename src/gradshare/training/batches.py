"""Training batches, read ahead in a thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from gradshare.tasks import TaskBatch, TaskSource
from gradshare.training.randomness import touches_generators


class Batches:
    """Batches of a source; the next one is made in a thread while the current one is used.

    A source that seeds or draws from a global generator is asked in the caller's thread instead,
    since it would change the model's random numbers meanwhile.
    """

    def __init__(self, source: TaskSource) -> None:
        self._source = source
        self._ahead: tuple[range, Future[TaskBatch]] | None = None
        here = touches_generators(lambda: source.batch([0]))
        self._pool = None if here else ThreadPoolExecutor(1, "gradshare-batches")

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self, tasks: range, following: range | None = None) -> TaskBatch:
        """The tasks with some indices. Those of the next call are begun."""
        if self._pool is None:
            return self._source.batch(tasks)
        if self._ahead is not None and self._ahead[0] == tasks:
            batch = self._ahead[1].result()
        else:
            batch = self._source.batch(tasks)
        self._ahead = None
        if following is not None:
            self._ahead = following, self._pool.submit(self._source.batch, following)
        return batch
