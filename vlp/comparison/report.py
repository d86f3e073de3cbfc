"""What a grid has measured so far, as JSON, Markdown, a terminal's table and a plot."""

import importlib.util
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vlp.comparison.grid import Run
from vlp.errors import UserError, nearest
from vlp.evaluation.retrieval import RECALL_AT
from vlp.evaluation.table import print_table, shortened
from vlp.files import write_bytes
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe

Comparison = dict[str, Any]
"""`comparison.json`: the `metrics`, and for each of the `cells` what it is, its `runs` with their `values`, and the
`mean` and sample `std` of each metric over the finished ones."""

NONE = "-"


def choose_metrics(given: Sequence[str] | None, recipes: Sequence[Recipe]) -> list[str]:
    """`given`, or text-to-image R@1 on short captions under each scoring.

    Raises:
        UserError: for a metric that no evaluation of these recipes has.
    """
    tasks = {task for recipe in recipes for task in recipe.evaluation.tasks}
    known = list(dict.fromkeys(name for recipe in recipes for name in retrieval_metrics(recipe)))
    for metric in given or []:
        task = metric.split(".")[0]
        if metric not in known and (task == "retrieval" or task not in tasks):
            others = [f"{task}.*" for task in sorted(tasks - {"retrieval"})]
            allowed = ", ".join(known + others)
            raise UserError(f"--metric {metric}: not evaluated here{nearest(metric, known)}; there are {allowed}")
    first = [name for name in known if name.endswith("text_to_image_r1")]
    chosen = list(given or []) or [name for name in first if ".short." in name] or first
    if not chosen:
        raise UserError(f"--metric: evaluation.tasks has no retrieval; name metrics of {', '.join(sorted(tasks))}")
    return list(dict.fromkeys(chosen))


def retrieval_metrics(recipe: Recipe) -> list[str]:
    """The dotted names under which the recipe's `evaluation.json` has retrieval."""
    if "retrieval" not in recipe.evaluation.tasks:
        return []
    scorings = ["agnostic", "conditioned"] if "pooling" in graph_needs(recipe).modules else ["agnostic"]
    ways = [f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT]
    return [".".join(("retrieval", *names)) for names in itertools.product(recipe.evaluation.captions, scorings, ways)]


def measured(run: Run) -> dict[str, float]:
    """Every number of the run's `evaluation.json` by its dotted name; empty before it has finished."""
    if not run.finished:
        return {}
    path = run.folder / "evaluation.json"
    try:
        return dict(_numbers(json.loads(path.read_text())))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); write it anew: tools/evaluate.py {run.folder}") from None


def _numbers(content: Any, name: str = "") -> list[tuple[str, float]]:
    if isinstance(content, dict):
        return [pair for key, value in content.items() for pair in _numbers(value, f"{name}.{key}" if name else key)]
    return [(name, content)] if isinstance(content, (int, float)) else []


def compare(runs: Sequence[Run], metrics: Sequence[str], out: Path) -> Comparison:
    """The comparison as it stands."""
    cells: dict[str, Any] = {}
    for run in runs:
        cell = cells.setdefault(
            run.cell,
            {"cell": run.cell, "recipe": run.recipe, "settings": run.settings}
            | {"steps": run.steps, "batch_size": run.batch_size, "samples_seen": run.steps * run.batch_size}
            | {"runs": []},
        )
        numbers = measured(run)
        cell["runs"].append(
            {"seed": run.seed, "folder": run.folder.relative_to(out).as_posix(), "command": run.command}
            | {"finished": run.finished, "minutes": run.progress()[1]}
            | {"values": {name: numbers[name] for name in metrics if name in numbers}}
        )
    for cell in cells.values():
        values = {name: seed_values(cell, name) for name in metrics}
        values = {name: numbers for name, numbers in values.items() if numbers}
        cell["mean"] = {name: float(np.mean(numbers)) for name, numbers in values.items()}
        cell["std"] = {name: float(np.std(n, ddof=1)) for name, n in values.items() if len(n) > 1}
    return {"metrics": list(metrics), "cells": list(cells.values())}


def seed_values(cell: dict[str, Any], metric: str) -> list[float]:
    return [run["values"][metric] for run in cell["runs"] if metric in run["values"]]


def require_measured(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Raises `UserError` for a metric that no finished run has, if any has finished."""
    there = list(dict.fromkeys(name for run in runs for name in measured(run)))
    for metric in metrics:
        if there and metric not in there:
            raise UserError(
                f"--metric {metric}: in no evaluation.json{nearest(metric, there)}; there are {', '.join(there)}"
            )


def write_comparison(runs: Sequence[Run], metrics: Sequence[str], out: Path) -> Comparison:
    """Write `comparison.json`, `comparison.md` and, once there is something to draw, `comparison.png` into `out`."""
    comparison = compare(runs, metrics, out)
    files = {"comparison.json": (json.dumps(comparison, indent=2) + "\n").encode()}
    if any(cell["mean"] for cell in comparison["cells"]) and has_matplotlib():
        from vlp.comparison.plot import draw

        files["comparison.png"] = draw(comparison)
    files["comparison.md"] = to_markdown(comparison, "comparison.png" in files).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(out / name, content)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror}); name another folder") from None
    return comparison


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def read_comparison(out: Path) -> tuple[list[Run], list[str]]:
    """The runs and the metrics of the comparison in `out`."""
    path = out / "comparison.json"
    try:
        content = json.loads(path.read_text())
        runs = [
            Run(
                folder=out / run["folder"],
                seed=run["seed"],
                command=run["command"],
                **{key: cell[key] for key in ("cell", "recipe", "settings", "steps", "batch_size")},
            )
            for cell in content["cells"]
            for run in cell["runs"]
        ]
        return runs, content["metrics"]
    except OSError as error:
        reason = error.strerror
    except (ValueError, KeyError, TypeError) as error:
        reason = f"not what this command writes: {error!r}"
    raise UserError(f"no comparison at {path} ({reason}); give --out of one, or recipes to train") from None


def table_rows(comparison: Comparison, brief: bool) -> list[list[str]]:
    """The head, then a row for each cell.

    Args:
        brief: without the values by seed, the samples seen and the minutes of a run.
    """
    cells, metrics = comparison["cells"], comparison["metrics"]
    columns = [name for metric in metrics for name in ([label(metric)] if brief else [label(metric), "by seed"])]
    further = [] if brief else ["samples seen", "minutes"]
    rows = [["recipe", *cells[0]["settings"], *columns, "seeds", *further]]
    for cell in cells:
        finished = [run for run in cell["runs"] if run["finished"]]
        row = [cell["recipe"], *cell["settings"].values()]
        for metric in metrics:
            row.append(spread(cell, metric))
            if not brief:
                row.append(", ".join(shown(run["values"].get(metric)) for run in cell["runs"]))
        row.append(str(len(finished)) + f" of {len(cell['runs'])}" * (len(finished) < len(cell["runs"])))
        if not brief:
            minutes = f"{np.mean([run['minutes'] for run in finished]):.1f}" if finished else NONE
            row += [f"{cell['samples_seen']:,}", minutes]
        rows.append(row)
    return rows


def spread(cell: dict[str, Any], metric: str) -> str:
    """Mean ± sample standard deviation, or the number of the only seed."""
    deviation = f" ± {cell['std'][metric]:.2f}" if metric in cell["std"] else ""
    return shown(cell["mean"].get(metric)) + deviation


def shown(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def label(metric: str) -> str:
    """A dotted metric as the head of a column: `T2I R@1 (short agnostic)`."""
    *middle, name = metric.removeprefix("retrieval.").split(".")
    return shortened(name) + (f" ({shortened(' '.join(middle))})" if middle else "")


def to_markdown(comparison: Comparison, plotted: bool) -> str:
    head, *rows = [[text.replace("|", "\\|") for text in row] for row in table_rows(comparison, brief=False)]
    lines = [head, ["---"] * len(head), *rows]
    seeds = ", ".join(str(run["seed"]) for run in comparison["cells"][0]["runs"])
    missing = [run["folder"] for cell in comparison["cells"] for run in cell["runs"] if not run["finished"]]
    paragraphs = [
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        f"Mean ± sample standard deviation over seeds (by seed: {seeds}); minutes are of training, one run's mean.",
    ]
    if missing:
        paragraphs.append("Not finished: " + ", ".join(f"`{folder}`" for folder in missing) + ".")
    if plotted:
        paragraphs.append("![The same as a plot](comparison.png)")
    return "\n\n".join(paragraphs) + "\n"


def print_comparison(comparison: Comparison, out: Path, console: Console) -> None:
    head, *rows = table_rows(comparison, brief=True)
    if console.is_terminal:
        head = [text.replace(" ", "\n").replace(".", ".\n") for text in head]  # narrow columns
    print_table("mean ± standard deviation over seeds", head, rows, console)
    print(f"written to {out / 'comparison.md'}, .json" + ", .png" * has_matplotlib())
    if not has_matplotlib():
        print("no plot without matplotlib: pip install 'vlp[plot]'")
