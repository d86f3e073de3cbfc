"""Training the runs of a grid as processes, some at a time. What is finished is not run again."""

import os
import signal
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from vlp.comparison.grid import Run
from vlp.errors import UserError

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
TAIL_LINES, LINE_LENGTH = 5, 300


@dataclass(frozen=True)
class Job:
    """A run in training. `number` counts runs from 1, `slot` the places for concurrent ones from 0."""

    number: int
    run: Run
    slot: int
    process: subprocess.Popen


def train_grid(runs: Sequence[Run], jobs: int, ended: Callable[[Run], str]) -> list[Run]:
    """Train what is not finished, `jobs` runs at a time, with a line as each starts and ends.

    A run that fails does not stop the others. However this function is left, no process of it lives on.

    Args:
        ended: called for each run that has finished; what it returns about the run is printed.

    Returns:
        The runs that failed.
    """
    waiting = deque((number, run) for number, run in enumerate(runs, 1) if not run.finished)
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished already", flush=True)
    free, active, failed = list(range(jobs)), [], []
    with caught_signals() as caught:
        try:
            while waiting or active:
                while waiting and free:
                    number, run = waiting.popleft()
                    print(f"[{number}/{len(runs)}] {run.name} starts", flush=True)
                    slot = free.pop(0)
                    active.append(Job(number, run, slot, start(run, slot, jobs)))
                time.sleep(POLL_SECONDS)
                for job in [job for job in active if job.process.poll() is not None]:
                    active.remove(job)
                    free.append(job.slot)
                    stop([job.process])  # what a failed one has left running
                    if job.process.returncode == 0 and job.run.finished:
                        left = minutes_left(runs, [job.run for job in active] + [run for _, run in waiting], jobs)
                        minutes = job.run.progress()[1]
                        outcome = f"{ended(job.run)}; {minutes:.1f} min of training; about {left:.0f} min left"
                    else:
                        failed.append(job.run)
                        outcome = failure(job)
                    print(f"[{job.number}/{len(runs)}] {job.run.name}: {outcome}", flush=True)
                if caught:
                    print("stopped; the same command goes on with what is not finished", flush=True)
                    raise KeyboardInterrupt
        finally:
            stop([job.process for job in active])
    return failed


def start(run: Run, slot: int, jobs: int) -> subprocess.Popen:
    """The run's process, in a process group of its own, writing to `train.log` in the run's folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [word.replace("{job}", str(slot)) for word in run.command]
    with (run.folder / "train.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(slot, jobs),
            start_new_session=True,
        )


def environment(slot: int, jobs: int) -> dict[str, str]:
    """Of several jobs, each has its share of the GPUs, else of the CPU threads."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if jobs == 1:
        return environment
    devices = visible_devices()
    if not devices:
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | environment
    share = len(devices) // jobs
    return environment | {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * share : (slot + 1) * share])}


def check_jobs(jobs: int) -> None:
    """Raises `UserError` for a number of jobs that this machine cannot take."""
    devices = visible_devices()
    if jobs < 1 or (devices and jobs > len(devices)):
        allowed = f"1 to {len(devices)}, one for each GPU" if devices else "1 and more"
        raise UserError(f"--jobs {jobs}: allowed are {allowed}")


def visible_devices() -> list[str]:
    """The GPUs, as `CUDA_VISIBLE_DEVICES` names them."""
    given, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(device) for device in range(count)]


def failure(job: Job) -> str:
    """How a run failed, with the last lines of its log."""
    log, code = job.run.folder / "train.log", job.process.returncode
    how = f"exit code {code}" if code else "it ended without evaluation.json"
    lines = [line[:LINE_LENGTH] for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n    ".join([f"failed ({how}); the end of {log}:", *lines[-TAIL_LINES:]])


def minutes_left(runs: Sequence[Run], unfinished: Sequence[Run], jobs: int) -> float:
    """By the pace of all training logged so far, of the same recipe where there is any."""
    samples, minutes = defaultdict(int), defaultdict(float)
    for run in runs:
        steps, spent = run.progress()
        for recipe in (run.recipe, "any"):
            samples[recipe] += steps * run.batch_size
            minutes[recipe] += spent
    left = 0.0
    for run in unfinished:
        recipe = run.recipe if samples[run.recipe] else "any"
        missing = (run.steps - run.progress()[0]) * run.batch_size
        left += missing * minutes[recipe] / max(1, samples[recipe])
    return left / max(1, min(jobs, len(unfinished)))


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """End them with all they have started: politely, after a while not."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        signal_group(process, signal.SIGTERM)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        signal_group(process, signal.SIGKILL)
        process.wait()


def signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses a group that has just ended
        os.killpg(process.pid, number)


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects the signals that ask this process to stop, so that none arrives between a run's start and its entry
    in the books. The runs are in sessions of their own: only their books tell whom to end."""
    caught: list[int] = []
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in asking if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in heard}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
