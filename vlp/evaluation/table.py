"""An evaluation's result as tables: drawn on a terminal, plain aligned lines otherwise."""

from typing import Any

from rich.console import Console
from rich.table import Table

SHORT = {"text_to_image_r": "T2I R@", "image_to_text_r": "I2T R@", "_": " "}


def print_result(result: dict[str, Any], console: Console) -> None:
    """One table for each task: a row for each part and scoring, a column for each metric, in percent."""
    for task, content in result.items():
        if not isinstance(content, dict):
            continue
        if "skipped" in content:
            console.print(f"{task}: skipped: {content['skipped']}", markup=False, soft_wrap=True)
            continue
        rows = metric_rows(content)
        columns = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
        cells = [
            [label, *(f"{metrics[name]:.2f}" if name in metrics else "" for name in columns)] for label, metrics in rows
        ]
        counts = ", ".join(f"{value} {name}" for name, value in content.items() if not isinstance(value, dict))
        print_table(f"{task} (%)" + f": {counts}" * bool(counts), [task, *map(shortened, columns)], cells, console)


def metric_rows(content: dict[str, Any], label: str = "") -> list[tuple[str, dict[str, float]]]:
    """The innermost mappings of numbers, each with the path of names that leads to it."""
    rows = []
    for name, value in content.items():
        if isinstance(value, dict):
            path = f"{label} {name}".strip()
            inner = any(isinstance(entry, dict) for entry in value.values())
            rows += metric_rows(value, path) if inner else [(path, value)]
    return rows


def shortened(name: str) -> str:
    """A metric's name as the head of a column."""
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name


def print_table(title: str, head: list[str], rows: list[list[str]], console: Console) -> None:
    """The first column is text, the others are numbers."""
    if console.is_terminal:
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    console.print(title, markup=False, highlight=False)
    for row in [head, *rows]:
        cells = [
            f"{cell:>{width}}" if i else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        console.print("  " + "  ".join(cells), markup=False, highlight=False, soft_wrap=True)
