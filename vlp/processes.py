"""Work over several processes: results in order, and never more of it begun than a few pieces ahead."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from vlp.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

Mapper = Callable[[Callable[[T], R], Iterable[T]], Iterator[tuple[T, R]]]
"""Like `map`, but gives each item with its result."""


@contextmanager
def processes(workers: int) -> Iterator[Mapper]:
    """A mapper over so many forked processes, which share what this one has imported; 1 works in this one.

    Enter it before anything starts threads: a fork copies none of them, but does copy the locks they hold.

    Raises:
        UserError: when a process was killed.
    """
    if workers == 1:
        yield lambda function, items: ((item, function(item)) for item in items)
        return
    others, context = multiprocessing.active_children(), multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=leave_with_parent) as pool:
        pool.submit(int).result()  # the first call forks all of them
        try:
            yield lambda function, items: _in_order(pool, function, items, 2 * workers)
        except BaseException as error:  # Ctrl-C too: what is begun may take minutes
            for process in set(multiprocessing.active_children()).difference(others):
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker process was killed, perhaps for want of memory; try fewer --workers"
                ) from None
            raise


def _in_order(
    pool: ProcessPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, R]]:
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > ahead:
            item, job = waiting.popleft()
            yield item, job.result()
    for item, job in waiting:
        yield item, job.result()


def leave_with_parent() -> None:
    """Let a worker end when the process that started it does, by a kill or by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
