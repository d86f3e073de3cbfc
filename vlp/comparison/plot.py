"""A comparison as a plot: a panel for each metric, means with error bars, and every seed's value as a point."""

import io
import math
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlp.comparison.report import Comparison, label, seed_values


def draw(comparison: Comparison) -> bytes:
    """PNG. Lines over the swept values where there is one sweep, else a row for each cell."""
    cells = comparison["cells"]
    metrics = [name for name in comparison["metrics"] if any(name in cell["mean"] for cell in cells)]
    swept = swept_keys(cells)
    height = 4.2 if swept else 1.0 + len(cells) * (0.4 + 0.15 * len(cells[0]["settings"]))
    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a value is a $
        figure = Figure(figsize=(5.0 * len(metrics), height), layout="constrained", dpi=150)
        panels = figure.subplots(1, len(metrics), squeeze=False, sharey=not swept)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            axes.grid(alpha=0.3)
            if swept:
                draw_lines(axes, cells, metric, swept)
            else:
                draw_rows(axes, cells, metric)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def swept_keys(cells: list[dict[str, Any]]) -> list[str]:
    """The keys that differ between cells, if they change together: the grid's only dimension beside recipes."""
    choices = {tuple(cell["settings"].values()) for cell in cells}
    distinct = {key: len({cell["settings"][key] for cell in cells}) for key in cells[0]["settings"]}
    together = all(count in (1, len(choices)) for count in distinct.values())
    return [key for key, count in distinct.items() if count > 1] if together else []


def draw_lines(axes: Axes, cells: list[dict[str, Any]], metric: str, keys: list[str]) -> None:
    """A line for each recipe over the values of `keys`."""
    choices = {cell["cell"]: tuple(cell["settings"][key] for key in keys) for cell in cells}
    ticks = list(dict.fromkeys(choices.values()))
    places = dict(zip(ticks, positions([choice[0] for choice in ticks]), strict=True))
    for i, recipe in enumerate(dict.fromkeys(cell["recipe"] for cell in cells)):
        own = [cell for cell in cells if cell["recipe"] == recipe and metric in cell["mean"]]
        if not own:
            continue
        own.sort(key=lambda cell: places[choices[cell["cell"]]])
        x = [places[choices[cell["cell"]]] for cell in own]
        means, deviations = [cell["mean"][metric] for cell in own], [deviation(cell, metric) for cell in own]
        axes.errorbar(x, means, yerr=deviations, color=f"C{i}", fmt="o-", capsize=4, label=recipe)
        for place, cell in zip(x, own, strict=True):
            values = seed_values(cell, metric)
            axes.scatter([place] * len(values), values, color=f"C{i}", s=14, alpha=0.4)
    if min(places.values()) > 0 and max(places.values()) >= 10 * min(places.values()):
        axes.set_xscale("log")
    axes.set_xticks(list(places.values()), [" & ".join(choice) for choice in ticks])
    axes.minorticks_off()
    axes.set_xlabel(" & ".join(keys))
    axes.set_ylabel(label(metric))
    axes.legend()


def draw_rows(axes: Axes, cells: list[dict[str, Any]], metric: str) -> None:
    """A row for each cell, the first one uppermost, coloured by recipe."""
    recipes = list(dict.fromkeys(cell["recipe"] for cell in cells))
    for row, cell in enumerate(cells):
        if metric in cell["mean"]:
            color, values = f"C{recipes.index(cell['recipe'])}", seed_values(cell, metric)
            axes.errorbar([cell["mean"][metric]], [row], xerr=deviation(cell, metric), color=color, fmt="o", capsize=4)
            axes.scatter(values, [row] * len(values), color=color, s=14, alpha=0.4)
    names = ["\n".join([cell["recipe"], *(f"{k}={v}" for k, v in cell["settings"].items())]) for cell in cells]
    axes.set_yticks(range(len(cells)), names)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlabel(label(metric))


def deviation(cell: dict[str, Any], metric: str) -> float:
    """That of one seed is drawn as a bar of no length."""
    return cell["std"].get(metric, 0.0)


def positions(values: list[str]) -> list[float]:
    """The numbers themselves, or 0, 1, 2, ... where one is no number."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = [math.nan]
    if all(map(math.isfinite, numbers)) and len(set(numbers)) == len(numbers):
        return numbers
    return [float(i) for i in range(len(values))]
