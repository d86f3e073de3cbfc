"""A graph's report as a drawing: data fields on the left, then passes and features as they read one another, then
objectives, balancer and total."""

import math
from pathlib import Path

from vlp.errors import UserError
from vlp.graph_report.layout import Layout
from vlp.graph_report.report import Report, Row

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Patch, PathPatch, Rectangle
    from matplotlib.path import Path as Curve
except ImportError:
    raise UserError("drawing needs matplotlib: pip install 'vlp[plot]'") from None

COLORS = {
    "data": "#d9d9d9",
    "pass": "#a6cee3",
    "frozen pass": "#cab2d6",
    "feature": "#b2df8a",
    "objective": "#fdbf6f",
    "balancer": "#fb9a99",
    "total": "#fb9a99",
}
WIDTH, PITCH, LINE = 2.0, 2.75, 0.15  # inches: of a box, from column to column, of a line of text


def draw_report(report: Report, path: Path) -> None:
    """Write an .svg (its text stays text) or a .png."""
    rows = [row for row in report.rows if row.kind != "rest"]
    last = [row.key for row in rows if row.kind == "balancer"]
    rows.append(Row("total", "total loss", reads=last, read_by=[], shapes=[]))
    lines = {row.key: box_lines(row, report) for row in rows}
    heights = {key: LINE * len(text) + 0.16 for key, text in lines.items()}
    layout = Layout(rows, heights)

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vlp", "font.family": "DejaVu Sans"}):
        low, high = layout.extent()
        width, height = PITCH * layout.columns, high - low + 1.1
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-PITCH / 2, width - PITCH / 2), ylim=(low - 0.5, high + 0.6))
        axes.axis("off")
        for row in rows:
            for source in row.reads:
                draw_edge(axes, layout.route(source, row.key), edge_color(source))
        for row in rows:
            draw_box(axes, row, lines[row.key], layout, heights[row.key], report)
        axes.set_title(headline(report), fontsize=11, y=1, pad=-18)
        axes.legend(
            handles=[Patch(facecolor=color, edgecolor="grey", label=kind) for kind, color in COLORS.items()][:-1],
            loc="lower center",
            ncols=len(COLORS),
            frameon=False,
            fontsize=8,
        )
        kind = path.suffix.lstrip(".")
        figure.savefig(path, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)


def headline(report: Report) -> str:
    return (
        f"{report.recipe} at scale {report.scale}: {report.trainable:,} trainable parameters, "
        f"{report.frozen:,} frozen; "
        f"{flops(report.forward / report.batch_size)} forward per image, "
        f"{flops(report.step)} in a step of {report.batch_size:,}"
    )


def flops(number: float) -> str:
    """`35.1 GFLOPs`"""
    power = min(5, int(math.log10(max(1, number))) // 3)
    return f"{number / 1000**power:.3g} {' kMGTP'[power].strip()}FLOPs"


def box_lines(row: Row, report: Report) -> list[str]:
    """The text of a box, its name first."""
    lines = [f"balancer: {row.name}" if row.kind == "balancer" else row.name]
    if row.kind == "objective":
        lines.append(row.about["type"])
        starts = f", from {row.about['starts_at']:.0%}" if row.about["starts_at"] else ""
        lines.append(f"weight {row.about['weight']:g}{starts}")
    lines += row.shapes[: 1 if row.kind == "data" else 2]
    if row.kind == "data" and row.about["tokens"]:
        lines.append(f"{row.about['tokens']:.1f} tokens")
    if row.trainable or row.frozen:
        lines.append(f"parameters: {row.trainable or row.frozen:,}")
    if row.step:
        lines.append(f"{flops(row.forward / report.batch_size)}/image, {row.step / report.step:.1%}")
    return lines


def box_color(row: Row) -> str:
    is_frozen = row.kind == "pass" and row.frozen and not row.trainable
    return COLORS["frozen pass" if is_frozen else row.kind]


def edge_color(source: str) -> str:
    return {"data": "#888888", "pass": "#1f78b4", "feature": "#33a02c", "objective": "#e08214"}.get(
        source.partition("/")[0], "#e31a1c"
    )


def draw_box(axes, row: Row, lines: list[str], layout: Layout, height: float, report: Report) -> None:
    """A box with its text; the bar at its foot is its share of a step's FLOPs."""
    x, y = layout.column[row.key] * PITCH, layout.y[row.key]
    left, foot = x - WIDTH / 2, y - height / 2
    style = "round,pad=0,rounding_size=0.06"
    box = FancyBboxPatch((left, foot), WIDTH, height, style, fc=box_color(row), ec="#555555", lw=0.7, zorder=2)
    axes.add_patch(box)
    share = row.step / max(1, report.step)
    bar = Rectangle((left, foot), WIDTH * share, 0.05, color="#333333", lw=0, zorder=3)
    axes.add_patch(bar)
    for i, line in enumerate(lines):
        top = y + height / 2 - 0.08 - LINE * (i + 0.5)
        weight, size = ("bold", min(8, 8 * 26 / len(line))) if i == 0 else ("normal", 6.5)
        axes.text(x, top, line, ha="center", va="center", fontsize=size, fontweight=weight, zorder=4)


def draw_edge(axes, points: list[tuple[int, float]], color: str) -> None:
    """A curve from the right of the first box to the left of the last one, through what lies between."""
    (column, y), *rest = points
    vertices, codes = [(column * PITCH + WIDTH / 2, y)], [Curve.MOVETO]
    for column, y in rest:
        start, end = vertices[-1], (column * PITCH - WIDTH / 2, y)
        bend = (end[0] - start[0]) / 2
        vertices += [(start[0] + bend, start[1]), (end[0] - bend, end[1]), end]
        codes += [Curve.CURVE4] * 3
        if (column, y) != rest[-1]:
            vertices.append((column * PITCH + WIDTH / 2, y))
            codes.append(Curve.LINETO)
    axes.add_patch(PathPatch(Curve(vertices, codes), fc="none", ec=color, lw=0.9, alpha=0.75, zorder=1))
    axes.plot(vertices[-1][0] - 0.03, vertices[-1][1], marker=">", ms=3.5, color=color, zorder=1)
