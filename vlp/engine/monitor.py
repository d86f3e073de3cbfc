"""What a run tells: `metrics.jsonl`, TensorBoard, and a live view of losses and weights by name."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from vlp.files import write_text

console = Console(stderr=False, highlight=False)


class Monitor:
    """Rank 0's record of a run; on other ranks nothing is made. Use as a context manager."""

    def __init__(self, run_dir: Path, start: int, steps: int):
        self.path = run_dir / "metrics.jsonl"
        _drop_lines_after(self.path, start)
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(run_dir / "tensorboard", purge_step=start)
        self.steps = steps
        self.progress = Progress(
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task("train", total=steps, completed=start, rate="")
        self.live = Live(self.progress, console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> "Monitor":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()
        self.file.close()
        self.board.close()

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def log(self, metrics: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, the same scalars to TensorBoard, and the view."""
        self.file.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items():
            if isinstance(value, (int, float)) and name != "step":
                self.board.add_scalar(name, value, metrics["step"])
        self.progress.update(self.task, rate=f"{metrics['samples_per_second']:.1f} samples/s")
        if self.live:
            self.live.update(Group(_table(metrics), self.progress))
            return
        losses = " ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in metrics.items() if k.startswith("loss/"))
        left = (self.steps - metrics["step"]) * metrics["step_seconds"]
        console.print(
            f"step {metrics['step']}/{self.steps}  loss {metrics['loss']:.4f}  {losses}  lr {metrics['lr']:.2e}  "
            f"{metrics['samples_per_second']:.1f} samples/s  {left / 60:.1f} min left",
            soft_wrap=True,
        )


def _table(metrics: dict[str, Any]) -> Table:
    table = Table("objective", "loss", "weight", title=f"loss {metrics['loss']:.4f}   lr {metrics['lr']:.2e}")
    for key, value in metrics.items():
        if key.startswith("loss/"):
            name = key.removeprefix("loss/")
            table.add_row(name, f"{value:.4f}", f"{metrics[f'weight/{name}']:.4f}")
    return table


def _drop_lines_after(path: Path, step: int) -> None:
    """Lines of steps that a resumed run makes again are dropped."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line cut off when the run was killed
    write_text(path, "".join(line + "\n" for line in kept))


def peak_memory_bytes() -> int:
    """The largest memory so far: allocated on the GPU, or resident on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Stopwatch:
    """Seconds since the last reading, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.begun, self.waited = time.perf_counter(), 0.0

    def wait_for(self, iterator: Any) -> Any:
        before = time.perf_counter()
        item = next(iterator)
        self.waited += time.perf_counter() - before
        return item

    def read(self) -> tuple[float, float]:
        """Seconds and the fraction of them that was waiting; starts anew."""
        now = time.perf_counter()
        seconds, waited = now - self.begun, self.waited
        self.begun, self.waited = now, 0.0
        return seconds, waited / max(seconds, 1e-9)
