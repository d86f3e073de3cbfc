"""Where the boxes of a drawn graph stand: columns by who reads whom, rows so that edges stay short."""

from collections import defaultdict
from itertools import pairwise

from vlp.graph_report.report import Row

GAP, PASSING = 0.18, 0.04  # inches: between boxes, and the height of an edge that passes a column
PULL = 0.9
LAST = ("objective", "balancer", "total")


class Layout:
    """`column` and `y` of every box. An edge over several columns has a place of its own in each."""

    def __init__(self, rows: list[Row], heights: dict[str, float]):
        self.column = columns(rows)
        self.columns = max(self.column.values()) + 1
        self.heights = defaultdict(lambda: PASSING, heights)
        stacks: list[list[str]] = [[] for _ in range(self.columns)]
        for key, column in self.column.items():
            stacks[column].append(key)
        self.left, self.right = defaultdict(list), defaultdict(list)
        self.passed: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            for source in row.reads:
                self._connect(source, row.key, stacks)
        self.y: dict[str, float] = {}
        for stack in stacks:
            self._stand(stack, dict.fromkeys(stack, 0.0))
        for sweep in range(40):
            near = (self.left, self.right)[sweep % 2] if sweep < 30 else None
            for stack in stacks if sweep % 2 == 0 else stacks[::-1]:
                self._stand(stack, {key: self._wanted(key, near) for key in stack})

    def route(self, source: str, target: str) -> list[tuple[int, float]]:
        """Column and height of an edge's ends and of every place between."""
        first = self.column[source]
        keys = [source, *self.passed[source, target], target]
        return [(first + i, self.y[key]) for i, key in enumerate(keys)]

    def extent(self) -> tuple[float, float]:
        edges = [(y - self.heights[key] / 2, y + self.heights[key] / 2) for key, y in self.y.items()]
        return min(low for low, _ in edges), max(high for _, high in edges)

    def _connect(self, source: str, target: str, stacks: list[list[str]]) -> None:
        """Places in the columns between."""
        between = range(self.column[source] + 1, self.column[target])
        self.passed[source, target] = [f"{source} > {target} {column}" for column in between]
        for column, key in zip(between, self.passed[source, target], strict=True):
            stacks[column].append(key)
        chain = [source, *self.passed[source, target], target]
        for one, other in pairwise(chain):
            self.right[one].append(other)
            self.left[other].append(one)

    def _wanted(self, key: str, near: dict[str, list[str]] | None) -> float:
        """The mean height of its neighbours on one side, or on both; a little nearer to the middle, so that parts
        without common neighbours do not drift apart."""
        others = near[key] if near is not None else self.left[key] + self.right[key]
        return PULL * (sum(self.y[other] for other in others) / len(others) if others else self.y[key])

    def _stand(self, stack: list[str], wanted: dict[str, float]) -> None:
        """One column, from the top, in the order of what they want, without overlap."""
        stack.sort(key=lambda key: -wanted[key])
        self.y |= wanted
        for above, below in pairwise(stack):
            room = (self.heights[above] + self.heights[below]) / 2 + GAP
            self.y[below] = min(self.y[below], self.y[above] - room)
        shift = sum(wanted[key] - self.y[key] for key in stack) / max(1, len(stack))
        for key in stack:
            self.y[key] += shift


def columns(rows: list[Row]) -> dict[str, int]:
    """One right of the rightmost part that it reads; objectives, balancer and total are the last three columns."""
    by_key = {row.key: row for row in rows}
    found: dict[str, int] = {}

    def column(key: str, path: tuple[str, ...]) -> int:
        if key not in found:
            sources = [other for other in by_key[key].reads if other not in path]  # a module may read what it made
            found[key] = max((column(other, (*path, key)) + 1 for other in sources), default=0)
        return found[key]

    middle = [row for row in rows if row.kind not in LAST]
    end = 1 + max(column(row.key, (row.key,)) for row in middle)
    found |= {row.key: end + LAST.index(row.kind) for row in rows if row.kind in LAST}
    for row in middle:
        if not row.reads and row.kind != "data":  # reads nothing: just before who reads it
            found[row.key] = min(found[key] for key in row.read_by) - 1
    return {row.key: found[row.key] for row in rows}
