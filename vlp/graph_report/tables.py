"""A graph's report as tables."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from vlp.graph_report.report import Report, Row

LEGEND = """\
FLOPs are those of products (matrix products, convolutions, attention), two for a multiplication and its addition: \
twice the MACs of fvcore, which leaves attention's products out. A step is the forward, and one product more for each \
factor of a product that takes a gradient: 3 x forward in the student, 1 x in a teacher. Not counted: everything \
elementwise, the optimizer, what activation checkpointing and train.accumulation compute again.
B images of one micro-batch, G images of the global batch. Measured with {images} and {twice} images in which the \
shares are as shown{tokens}. {repeated:.2%} of a step is repeated by each further rank or micro-batch.
All objectives train, also those that start later."""


def print_report(report: Report, console: Console) -> None:
    """Data, passes, features, objectives, totals, and what the numbers mean."""
    console.print(f"[bold]{report.recipe}[/] at scale [bold]{report.scale}[/], batch {report.batch_size:,}\n")
    for table in (data_table(report), pass_table(report), feature_table(report), objective_table(report)):
        console.print(table)
        console.print()
    heads = sum(row.trainable for row in report.of("objective"))
    console.print(
        f"parameters: {report.trainable:,} trainable ({heads:,} of them in heads of objectives), "
        f"{report.frozen:,} frozen ({report.teacher:,} of them in the teacher)"
    )
    console.print(
        f"FLOPs: {report.forward / report.batch_size / 1e9:,.3f} G forward per image; "
        f"{report.step / 1e12:,.3f} T in a step of {report.batch_size:,} images"
    )
    console.print(
        "\n"
        + LEGEND.format(
            images=report.images,
            twice=2 * report.images,
            tokens="" if report.tokens is None else f", every caption {report.tokens} tokens long",
            repeated=report.repeated / max(1, report.step),
        ),
        style="dim",
        width=min(120, console.width),
    )


def data_table(report: Report) -> Table:
    return make_table(
        "data",
        ["field", "shape", ">of images", ">mean tokens", "read by"],
        (
            [row.name, row.shapes[0], f"{row.about['share']:.4g}", length(row.about["tokens"]), names(row.read_by)]
            for row in report.of("data")
        ),
    )


def pass_table(report: Report) -> Table:
    return make_table(
        "passes",
        ["pass", "input", ">calls", ">parameters", *COSTS, "reads"],
        (
            [row.name, some(row.shapes), str(row.calls), count(row), *cost(row, report), names(row.reads)]
            for row in report.of("pass") + report.of("rest")
        ),
    )


def feature_table(report: Report) -> Table:
    return make_table(
        "features",
        ["feature", "shape", "reads", "read by"],
        ([row.name, some(row.shapes), names(row.reads), names(row.read_by)] for row in report.of("feature")),
    )


def objective_table(report: Report) -> Table:
    return make_table(
        "objectives",
        ["objective", "type", ">weight", ">starts at", ">own parameters", *COSTS, "reads"],
        (
            [
                *(row.name, row.about["type"], f"{row.about['weight']:g}", f"{row.about['starts_at']:.0%}"),
                *(count(row), *cost(row, report), names(row.reads)),
            ]
            for row in report.of("objective")
        ),
    )


COSTS = (">GFLOPs/image", ">of step")


def cost(row: Row, report: Report) -> tuple[str, str]:
    """Forward GFLOPs per image, and the share of a training step."""
    forward = row.forward / report.batch_size / 1e9
    return (
        f"{forward:,.3f}" if forward >= 0.1 or not forward else f"{forward:.3g}",
        f"{row.step / max(1, report.step):.1%}",
    )


def count(row: Row) -> str:
    """Its parameters."""
    parts = [f"{row.trainable:,}"] * bool(row.trainable or not row.frozen) + [f"{row.frozen:,} frozen"] * bool(
        row.frozen
    )
    return " + ".join(parts)


def length(tokens: float | None) -> str:
    return "" if tokens is None else f"{tokens:.1f}"


def names(keys: list[str]) -> str:
    return ", ".join(key.partition("/")[2] for key in keys)


def some(shapes: list[str], most: int = 2) -> str:
    return " ".join(shapes[:most]) + f" and {len(shapes) - most} more" * (len(shapes) > most)


def make_table(title: str, head: list[str], rows: Iterable[list[str]]) -> Table:
    """Columns whose head starts with > are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", header_style="dim")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table
