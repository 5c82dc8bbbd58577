"""Training batches, read ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from gradshare.tasks import TaskBatch, TaskSource
from gradshare.training.randomness import touches_generators


def read_ahead(source: TaskSource, indices: Iterable[range]) -> Iterator[TaskBatch]:
    """Batches of a source; the next one is made in a thread while the current one is used.

    A source that seeds or draws from a global generator is asked in the caller's thread instead,
    since it would change the model's random numbers meanwhile.

    Args:
        source: the source.
        indices: of the tasks of each batch.
    """
    if touches_generators(lambda: source.batch([0])):
        yield from map(source.batch, indices)
        return
    begun: deque[Future[TaskBatch]] = deque()
    with ThreadPoolExecutor(1, "gradshare-batches") as pool:
        for tasks in indices:
            begun.append(pool.submit(source.batch, tasks))
            if len(begun) > 1:
                yield begun.popleft().result()
        yield from (last.result() for last in begun)
