"""The measured loader, and the workers that a rate needs."""

from pathlib import Path

import pytest
from planted import make_recipe, sample, write_shards
from rich.console import Console

from vlp.data_report import tables, throughput
from vlp.data_report.tables import print_speed
from vlp.data_report.throughput import Speed, measure, per_worker, workers_for
from vlp.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path, [sample(number) for number in range(60)], shards=3)


@pytest.mark.parametrize(("workers", "measured"), [(0, [0, 1]), (1, [1]), (8, [1, 3])])
def test_one_worker_and_those_of_the_recipe_as_far_as_shards_go(
    folder: Path, workers: int, measured: list[int]
) -> None:
    speeds = measure(make_recipe(folder, f"data.workers={workers}"), seconds=0.05)
    assert [speed.workers for speed in speeds] == measured
    for speed in speeds:
        assert speed.images > 0 and speed.images % max(1, speed.workers) == 0 and speed.seconds >= 0.05
        assert speed.rate == speed.images / speed.seconds and speed.each == speed.rate / max(1, speed.workers)


def test_a_large_batch_is_not_waited_for(folder: Path) -> None:
    (speed,) = measure(make_recipe(folder, "train.batch_size=65536", "data.streams=2"), seconds=0.01)
    assert speed.images < 1000


def test_a_loader_that_stops(tmp_path: Path) -> None:
    recipe = make_recipe(write_shards(tmp_path, [sample(n, png=b"none") for n in range(4)]))
    with pytest.raises(UserError, match="no usable sample"):
        measure(recipe, seconds=0.05)


def test_workers_for_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "cores", lambda: 8)
    together = [Speed(1, 1000, 2.0), Speed(8, 16_000, 5.0)]
    assert per_worker(together) == 400, "what they gave together, a little less than one alone"
    assert [workers_for(rate, 400) for rate in (1, 400, 401, 2000)] == [1, 1, 2, 5]
    monkeypatch.setattr(throughput, "cores", lambda: 4)
    assert per_worker(together) == 500, "eight on four cores say nothing of eight cores"
    assert per_worker([Speed(0, 300, 1.0), Speed(1, 280, 1.0)]) == 280


def printed(speeds: list[Speed], wanted: float | None, ranks: int) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        print_speed(speeds, wanted, ranks, console)
    return capture.get()


def test_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "cores", lambda: 16)
    monkeypatch.setattr(tables, "cores", lambda: 16)
    speeds = [Speed(1, 1000, 2.0), Speed(4, 4000, 2.5)]
    text = printed(speeds, 900, 8)
    assert (
        "To feed 900 images a second the recipe needs 3 workers a rank; 8 ranks on this machine would want 24 cores"
        in text
    )
    assert "metrics.jsonl" not in text and "4 workers" in text and "1,600" in text
    text = printed(speeds, None, 1)
    assert [f"To feed {rate} images a second" in text for rate in ("250", "500", "1,000", "2,000", "900")] == [
        True
    ] * 4 + [False]
    assert "needs 1 worker a rank." in text and "needs 5 workers a rank." in text
    assert "metrics.jsonl" in text
