"""The embedded demo set on disk: contract, determinism, and safety when started twice or stopped."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from vlp.data import emoji_shards
from vlp.data.emoji_scenes import held_out
from vlp.data.emoji_shards import DemoSet, demo_shards
from vlp.errors import UserError

TINY = DemoSet(train=24, validation=10, shard_size=8, questions=20)
TOOL = Path(__file__).parents[2] / "tools" / "prepare_demo.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_shards(str(tmp_path_factory.mktemp("cache")), TINY)


def samples(folder: Path, split: str) -> list[dict]:
    """Every sample as stored: pictures in their own mode, the json read."""
    shards = sorted(str(path) for path in folder.glob(f"{split}-*.tar"))
    opened = {
        "json": json.loads,
        "txt": bytes.decode,
        "jpg": lambda data: Image.open(io.BytesIO(data)),
        "mask.png": lambda data: Image.open(io.BytesIO(data)),
    }
    raw = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    return [{name: opened.get(name, str)(value) for name, value in sample.items()} for sample in raw]


def test_the_folder_holds_shards_and_tables(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE.txt",
        "README.txt",
        "classes.json",
        "questions.json",
        "summary.json",
        *(f"train-{shard:06d}.tar" for shard in range(3)),
        *(f"validation-{shard:06d}.tar" for shard in range(2)),
    ]
    assert "CC-BY 4.0" in (folder / "LICENSE.txt").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["train"], summary["validation"], summary["version"]) == (24, 10, TINY.version)
    keys = {sample["__key__"] for sample in samples(folder, "validation")}
    questions = json.loads((folder / "questions.json").read_text())
    assert questions and all({*q["pos_imgs"], *q["neg_imgs"]} <= keys for q in questions)


@pytest.mark.parametrize(("split", "number"), [("train", 24), ("validation", 10)])
def test_every_sample_keeps_the_data_contract(folder: Path, split: str, number: int) -> None:
    classes = json.loads((folder / "classes.json").read_text())
    found = samples(folder, split)
    assert len({sample["__key__"] for sample in found}) == number
    for sample in found:
        record = sample["json"]
        assert sample["jpg"].size == (128, 128) and sample["jpg"].mode == "RGB"
        assert sample["txt"] == record["raw"]
        assert len(record["short"]) == len(record["long"]) == 3
        assert all(set(pair) == {"question", "answer", "kind"} for pair in record["vqa"])
        assert "Twitter" in record["license"]
        assert len(record["regions"]) == len(record["objects"])
        for region in record["regions"]:
            x0, y0, x1, y1 = region["box"]
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert region["score"] == 1.0 and region["phrase"] and region["caption"]
        if split == "validation":
            _check_mask(sample, classes)
        else:
            assert "mask.png" not in sample
        color = record["background"]["color"]
        names = [thing["name"] for thing in record["objects"]]
        unseen = [held_out(name, color) for name in names] + [held_out(a, b) for a in names for b in names if a < b]
        assert any(unseen) == (split == "validation")


def _check_mask(sample: dict, classes: list[str]) -> None:
    """The classes in the mask are the objects, and every box is the edge of its class where it has one object."""
    assert sample["mask.png"].mode == "L"
    mask = np.asarray(sample["mask.png"])
    assert mask.shape == (128, 128)
    names = [thing["name"] for thing in sample["json"]["objects"]]
    assert {classes[value - 1] for value in np.unique(mask) if value} == set(names)
    for name, region in zip(names, sample["json"]["regions"], strict=True):
        rows, columns = np.nonzero(mask == classes.index(name) + 1)
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
        x0, y0, x1, y1 = region["box"]
        assert edges[0] <= x0 and edges[1] <= y0 and edges[2] >= x1 and edges[3] >= y1
        if names.count(name) == 1:
            assert region["box"] == edges.tolist()


def test_two_builds_from_one_seed_are_byte_identical_and_another_seed_differs(folder: Path, tmp_path: Path) -> None:
    again = demo_shards(str(tmp_path), TINY)
    assert again.name == folder.name
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    assert DemoSet(train=24, validation=10, shard_size=8, questions=20, seed=1).version != TINY.version


def test_an_existing_set_is_not_made_again(folder: Path) -> None:
    before = (folder / "summary.json").stat().st_mtime_ns
    assert demo_shards(str(folder.parent), TINY) == folder
    assert (folder / "summary.json").stat().st_mtime_ns == before


def test_the_cache_is_the_argument_then_the_variable_then_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(emoji_shards, "write_demo_set", lambda folder, settings: None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "variable"))
    assert demo_shards(str(tmp_path / "argument")).parent == tmp_path / "argument"
    assert demo_shards().parent == tmp_path / "variable"
    monkeypatch.delenv("VLP_CACHE")
    assert demo_shards().parent == tmp_path / "home" / ".cache" / "vlp"


def test_a_failed_build_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(emoji_shards, "retrieval_questions", full_disk)
    with pytest.raises(UserError, match=r"No space left on device.*VLP_CACHE"):
        demo_shards(str(tmp_path), TINY)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_partial_folder_of_a_killed_process_is_cleaned(tmp_path: Path) -> None:
    stale = tmp_path / f"emoji-scenes-{TINY.version}.partial-123"
    stale.mkdir()
    (stale / "train-000000.tar").write_bytes(b"half")
    folder = demo_shards(str(tmp_path), TINY)
    assert folder.is_dir() and not stale.exists()


def _make(cache: str) -> None:
    demo_shards(cache, TINY)


def test_two_processes_at_once_make_one_set(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{folder.name}.lock", folder.name]
    assert capfd.readouterr().err.count("34/34") == 1, "built once"


def test_a_kill_in_the_middle_ends_the_workers_and_leaves_no_set(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--cache", str(tmp_path), "--train", "5000", "--validation", "4"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.partial-*/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = _children(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and ".partial" not in path.name]
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    """Whether the process runs; one that ended but is not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_settings_that_make_no_set_are_refused() -> None:
    with pytest.raises(UserError, match="train is 0, it must be at least 1"):
        DemoSet(train=0)


def test_the_command_makes_the_set_and_prints_where_it_is(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, str(TOOL), "--out", str(out), "--train", "4", "--validation", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(out)
    assert "4 training and 2 validation scenes" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.splitlines() == [f"error: --out {out} already exists; name a new folder"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = subprocess.run([sys.executable, str(TOOL), "--cache", str(blocked)], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "VLP_CACHE" in done.stderr
