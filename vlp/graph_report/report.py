"""A recipe's graph as a list of parts: shapes, parameters, FLOPs at the recipe's batch size, who reads what.

The graph runs twice, over a few images and over twice as many, each time as part of a global batch of the recipe's
size. What a part costs is a constant plus a multiple of the own images, because images meet only in the exchanged
tensors; so two sizes give the cost of the whole batch exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vlp.data.tokens import PAD
from vlp.graph_report.provenance import Part
from vlp.graph_report.synthetic import SyntheticImages
from vlp.graph_report.trace import trace
from vlp.objectives.graph import ObjectiveGraph
from vlp.recipe import Recipe


@dataclass
class Row:
    """A part of the graph. FLOPs are those of the global batch; `step` is forward and backward."""

    kind: str
    name: str
    reads: list[str]
    read_by: list[str]
    shapes: list[str]
    calls: int = 0
    trainable: int = 0
    frozen: int = 0
    forward: int = 0
    step: int = 0
    repeated: int = 0
    """The part of `step` that every further rank or micro-batch has too."""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass
class Report:
    """What `tools/show_graph.py` shows."""

    recipe: str
    scale: str
    batch_size: int
    images: int
    """How many images were measured, and then twice as many."""
    tokens: int | None
    trainable: int
    teacher: int
    frozen: int
    """Of the teacher and all else that takes no gradient."""
    forward: int
    step: int
    repeated: int
    rows: list[Row]

    def of(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.kind == kind]


def graph_report(recipe: Recipe, tokens: int | None = None) -> Report:
    """Build the recipe's graph and measure it. Nothing is trained, no data set is read.

    Args:
        tokens: the length of every caption; else those of the demo set's captions.
    """
    engine = recipe.engine.model_copy(update={"activation_checkpointing": False})  # what it repeats is not counted
    graph = ObjectiveGraph(recipe.model_copy(update={"engine": engine}))
    images = SyntheticImages(recipe, graph.needs.data, tokens)
    small, large = (trace(graph, images.batch(times), recipe.train.steps) for times in (1, 2))
    line = Line(len(images.samples), recipe.train.batch_size)

    rows = [make_row(part, large[key], graph, line) for key, part in small.items()]
    rows = without_details(rows)
    return Report(
        recipe=recipe.name,
        scale=recipe.scale,
        batch_size=recipe.train.batch_size,
        images=len(images.samples),
        tokens=tokens,
        trainable=parameters(graph, lambda p: p.requires_grad),
        teacher=parameters(graph.teacher, lambda p: True),
        frozen=parameters(graph, lambda p: not p.requires_grad),
        **{name: sum(getattr(row, name) for row in rows) for name in ("forward", "step", "repeated")},
        rows=rows,
    )


@dataclass
class Line:
    """A count that is linear in the own images, from its values at `images` and at twice as many of them."""

    images: int
    batch_size: int

    def slope(self, small: int, large: int) -> Fraction:
        return Fraction(large - small, self.images)

    def constant(self, small: int, large: int) -> int:
        return 2 * small - large

    def at_batch_size(self, small: int, large: int) -> int:
        return round(self.constant(small, large) + self.slope(small, large) * self.batch_size)

    def size(self, small: int, large: int) -> str:
        """A side of a tensor in own images B: `B`, `8B`, `B/16`, `2.25B`, `197`."""
        slope, constant = self.slope(small, large), self.constant(small, large)
        if not slope:
            return str(small)
        text = f"B/{slope.denominator}" if slope.numerator == 1 else f"{float(slope):.4g}B"
        text = "B" if slope == 1 else text
        return text if not constant else f"{text}{constant:+d}"

    def shape(self, small: tuple[int, ...], large: tuple[int, ...]) -> str:
        return f"[{', '.join(map(self.size, small, large))}]"


def make_row(small: Part, large: Part, graph: ObjectiveGraph, line: Line) -> Row:
    """A part that ran in both sizes."""
    shapes = [line.shape(a.shape, b.shape) for a, b in zip(small.tensors, large.tensors, strict=False)]
    inputs = [line.shape(a, b) for (_, a), (_, b) in zip(small.calls, large.calls, strict=False) if a]
    if small.of_all_images:
        shapes = [f"[G, {shape.partition(', ')[2]}" for shape in shapes]
    steps = [part.forward + part.backward for part in (small, large)]
    row = Row(
        small.kind,
        small.name,
        reads=list(small.reads),
        read_by=[f"objective/{name}" for name in small.readers],
        shapes=list(dict.fromkeys(shapes or inputs)),
        calls=len(small.calls),
        forward=line.at_batch_size(small.forward, large.forward),
        step=line.at_batch_size(*steps),
        repeated=line.constant(*steps),
    )
    module = graph.objectives[small.name] if small.kind == "objective" else small.module
    row.trainable = parameters(module, lambda p: p.requires_grad)
    row.frozen = parameters(module, lambda p: not p.requires_grad)
    if small.kind == "objective":
        settings = graph.recipe.objectives[small.name]
        row.about = {"type": settings.type, "weight": settings.weight, "starts_at": settings.starts_at}
    if small.kind == "pass":
        row.about = {
            "calls": [f"{name} {line.shape(a, b)}" for (name, a), (_, b) in zip(small.calls, large.calls, strict=False)]
        }
    if small.kind == "data":
        images = line.slope(len(small.tensors[0]), len(large.tensors[0]))
        row.about = {"share": float(images), "tokens": mean_tokens(small.tensors[0])}
    return row


def without_details(rows: list[Row]) -> list[Row]:
    """Rows without features of mere bookkeeping (what stands where), and without those that only one part reads
    unless it is an objective; what reads these then reads what they are computed from."""
    by_key = {row.key: row for row in rows}
    real = set()
    for _ in rows:  # until nothing changes
        real = {row.key for row in rows if row.kind in ("data", "pass") or any(key in real for key in row.reads)}

    def kept(row: Row) -> bool:
        if row.kind == "rest":
            return row.step > 0
        if row.kind != "feature":
            return True
        readers = sum(row.key in other.reads for other in rows)
        return row.key in real and bool(row.read_by or readers > 1 or row.step)

    keys = {row.key for row in rows if kept(row)}

    def through(key: str) -> list[str]:
        return [key] if key in keys else [other for source in by_key[key].reads for other in through(source)]

    kept_rows = [row for row in rows if row.key in keys]
    for row in kept_rows:
        row.reads = list(dict.fromkeys(key for source in row.reads for key in through(source)))
    for row in kept_rows:
        readers = [other.key for other in kept_rows if row.key in other.reads]
        row.read_by = list(dict.fromkeys(row.read_by + readers))
    return kept_rows


def parameters(module: nn.Module | None, chosen: Callable[[nn.Parameter], bool]) -> int:
    """How many numbers the chosen parameters of a module have."""
    return sum(p.numel() for p in module.parameters() if chosen(p)) if module is not None else 0


def mean_tokens(ids: Tensor) -> float | None:
    """The mean length of the token ids in the last dimension; None for anything else."""
    if ids.is_floating_point() or ids.dtype == torch.uint8 or ids.ndim < 2:
        return None
    return float((ids != PAD).sum(-1).float().mean())
