"""How long work shows that it goes on: a bar with rate and time left on a terminal, elsewhere plain lines."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def with_progress(
    items: Iterable[T], total: int, what: str, unit: str, size: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """Pass `items` on and show on stderr how many of `total` units are done.

    Args:
        what: names the work, as in "emoji scenes".
        unit: what `total` and the rate count, as in "scenes".
        size: how many units an item is.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    done = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        for item in items:
            tenth, done = 10 * done // max(total, 1), done + size(item)
            progress.update(task, completed=done)
            if not console.is_terminal and 10 * done // max(total, 1) > tenth:
                print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)
            yield item


class _Rate(ProgressColumn):
    """Units a second, or seconds a unit where one takes longer than that."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> str:
        if not task.speed:
            return ""
        return f"{task.speed:.0f} {self.unit}/s" if task.speed >= 1 else f"{1 / task.speed:.0f} s each"
