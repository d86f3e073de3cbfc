"""The report on a terminal. Texts from data are shown as they are, never as markup."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlp.data_report.findings import Finding
from vlp.data_report.printable import printable
from vlp.data_report.report import DataReport, Lengths
from vlp.data_report.throughput import RATES, Speed, cores, per_worker, workers_for

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_report(report: DataReport, console: Console) -> None:
    """Coverage, captions, pictures, then findings."""
    console.print(
        f"{report.recipe} at scale {report.scale}: {report.samples:,} samples of {report.shards_read:,} of "
        f"{report.shards:,} shards; {report.usable:,} are usable\n"
    )
    for table in (_coverage(report), *_lengths(report), _pictures(report), _findings(report)):
        if table.row_count:
            console.print(table)
            console.print()
    counts = {name: sum(f.severity == name for f in report.findings) for name in COLOURS}
    console.print(", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items()))


def found(finding: Finding) -> str:
    """In how many cases."""
    if finding.of == finding.count:
        return f"{finding.count:,} {finding.subject}"
    return f"{finding.count:,} of {finding.of:,} {finding.subject} ({percent(finding.count, finding.of)})"


def example(finding: Finding) -> str:
    """Where the first case is, and what it looks like."""
    place = " in ".join(printable(part, 120) for part in (finding.key, finding.shard) if part)
    return ": ".join(part for part in (place, finding.value) if part)


def percent(count: float, of: float) -> str:
    """A share; never 0 % or 100 % of what is a little more or less."""
    share = 100 * count / max(1, of)
    if 0 < share < 0.1:
        return "under 0.1 %"
    return f"{share:.0f} %" if share in (0, 100) else f"{min(share, 99.9):.1f} %"


def _findings(report: DataReport) -> Table:
    table = _table("findings", ["", "found", "what is wrong", "what to do"], lines=True)
    for finding in report.findings:
        what = Text(finding.what)
        if example(finding):
            what.append(f"\nfirst: {example(finding)}", style="dim")
        severity = Text(finding.severity, style=COLOURS[finding.severity])
        table.add_row(severity, Text(found(finding)), what, Text(finding.mend))
    return table


def _coverage(report: DataReport) -> Table:
    rows = (
        [
            *(row.objective, row.reads, row.field),
            *(f"{row.have:,} of {row.of:,}", percent(row.have, row.of), f"{row.images:,.1f}"),
        ]
        for row in report.coverage
    )
    head = ["objective", "reads", "from", ">samples have it", "> ", ">images a step"]
    return _filled(_table("what the objectives find", head), rows)


def _lengths(report: DataReport) -> list[Table]:
    def rows(lengths: list[Lengths], *more: bool) -> Iterable[list[str]]:
        for row in lengths:
            cells = [row.name, f"{row.cases:,}", f"{row.median:.0f}", f"{row.most:.0f}", f"{row.largest:,}"]
            yield cells + [percent(row.cut, row.cases) for _ in more]

    head = [">captions", ">median", ">90 % are below", ">largest"]
    tokens = _table("tokens of the captions that are drawn", ["request", *head, f">cut at {report.context_length}"])
    sentences = _table("sentences of the captions that are split", ["field", *head])
    return [_filled(tokens, rows(report.tokens, True)), _filled(sentences, rows(report.sentences))]


def _pictures(report: DataReport) -> Table:
    total, most = sum(report.sides.values()), max(report.sides.values(), default=1)
    rows = (
        [name, f"{count:,}", percent(count, total), "█" * round(30 * count / max(1, most))]
        for name, count in report.sides.items()
    )
    head = [f"pixels (model: {report.image_size})", ">pictures", "> ", ""]
    return _filled(_table("pictures by their shorter side", head), rows)


def print_speed(speeds: list[Speed], wanted: float | None, ranks: int, console: Console) -> None:
    """Images per second, and the workers that a rank needs for those `wanted` or for usual rates."""
    each, most = per_worker(speeds), cores()
    rows = ([_workers(speed.workers), f"{speed.rate:,.0f}", f"{speed.each:,.0f}"] for speed in speeds)
    head = ["this loader on this machine", ">images a second", ">each worker"]
    console.print(_filled(_table("speed", head), rows))
    console.print()
    for rate in RATES if wanted is None else (wanted,):
        count = workers_for(rate, each)
        wanted_cores = count * ranks
        note = f"; {ranks} rank{'s'[: ranks > 1]} on this machine would want {wanted_cores:,} cores, and it has {most}"
        console.print(
            f"To feed {rate:,.10g} images a second the recipe needs {count:,} worker{'s'[: count > 1]} a rank"
            f"{note * (wanted_cores > most)}.",
            soft_wrap=True,
        )
    console.print(
        "Set data.workers to that, and data.streams to a multiple of ranks times workers. Measured from files that the "
        "system may hold in memory: a cold disk or a network can be slower."
        + (
            " What a rank trains at is not known before it trains: it is samples_per_second in the run's "
            "metrics.jsonl, divided by the ranks; give it as --images-per-second."
            if wanted is None
            else ""
        ),
        style="dim",
        width=min(120, console.width),
    )


def _workers(count: int) -> str:
    return f"{count} worker{'s'[: count > 1]}" if count else "no worker, in the training process"


def _table(title: str, head: list[str], lines: bool = False) -> Table:
    """Columns whose head starts with > are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", header_style="dim")
    if lines:
        table.padding, table.leading = (0, 2, 0, 0), 1
    return table


def _filled(table: Table, rows: Iterable[list[str]]) -> Table:
    for row in rows:
        table.add_row(*map(Text, row))
    return table
