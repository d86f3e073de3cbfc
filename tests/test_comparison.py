"""Grids of runs: what is asked for is found out before anything trains, what is trained is compared."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_run import run_tool

from vlp.comparison import report, running
from vlp.comparison.grid import Run, cell_name, make_grid, parse_launcher, parse_seeds, parse_set, split_values
from vlp.comparison.plot import draw, positions, swept_keys
from vlp.comparison.report import (
    choose_metrics,
    compare,
    label,
    read_comparison,
    require_measured,
    table_rows,
    to_markdown,
    write_comparison,
)
from vlp.comparison.running import check_jobs, environment, minutes_left, train_grid
from vlp.errors import UserError
from vlp.evaluation.retrieval import retrieval_metrics
from vlp.recipe import load_recipe, save_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
CLIP, SUPERCLIP, FLAIR = (str(RECIPES / f"{name}.yaml") for name in ("clip", "superclip", "flair"))
AGNOSTIC = "retrieval.short.agnostic.text_to_image_r1"
CONDITIONED = "retrieval.short.conditioned.text_to_image_r1"

PLAIN = st.text("abc019._/:~ '", min_size=1).map(str.strip).filter(lambda text: text[:1].isalnum() and ": " not in text)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
)


@settings(deadline=None)
@given(st.lists(PLAIN | JSON_VALUES.map(json.dumps), min_size=1))
def test_values_are_cut_at_the_outer_commas(values: list[str]) -> None:
    assert split_values(", ".join(values)) == values


def test_a_set_is_a_dimension_and_tied_keys_are_one() -> None:
    assert parse_set("train.steps=10,20") == [{"train.steps": "10"}, {"train.steps": "20"}]
    assert parse_set("train.betas=[0.9, 0.98],[0.9, 0.95]") == [
        {"train.betas": "[0.9, 0.98]"},
        {"train.betas": "[0.9, 0.95]"},
    ]
    assert parse_set("a.b=1,2 & c=x,y") == [{"a.b": "1", "c": "x"}, {"a.b": "2", "c": "y"}]
    assert parse_set("data.train=/a/{0..4}.tar,/b&c/*.tar") == [
        {"data.train": "/a/{0..4}.tar"},
        {"data.train": "/b&c/*.tar"},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.steps", "not of the form KEY=V1,V2"),
        ("=1,2", "not of the form KEY=V1,V2"),
        ("a=1,2 & b=3", "equally many values; a has 2, b has 1"),
        ("a=1,2 & a=3,4", "a is given twice"),
        ("a=1,", "an empty value; write null"),
        ("a=", "an empty value; write null"),
        ("a=[1,2", "a bracket that is not closed"),
        ("a='1,2", "are not YAML"),
    ],
)
def test_a_set_that_cannot_be_meant(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("[", r"\[")):
        parse_set(text)


@settings(deadline=None)
@given(st.text("ab=,&[]{}'\": #\\\n\x00é"))
def test_wild_sets_are_choices_or_a_user_error(text: str) -> None:
    try:
        choices = parse_set(text)
    except UserError:
        return
    assert choices and all(choice.keys() == choices[0].keys() for choice in choices)
    assert all(value for choice in choices for value in choice.values())


def test_seeds() -> None:
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("0,3,5") == [0, 3, 5]
    assert parse_seeds("7,") == [7]
    for text in ("0", "", ",", "-1", "1,1", "a", "1.5", "1,,2", "²"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)


def test_launchers() -> None:
    assert parse_launcher(None) == [sys.executable]
    assert parse_launcher("nice -n 5 'python'") == ["nice", "-n", "5", "python"]
    for text in ("", "no-such-command", "nice 'x"):
        with pytest.raises(UserError, match="--launcher"):
            parse_launcher(text)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.text()), unique=True, min_size=2, max_size=8))
def test_cells_that_differ_never_share_a_folder(cells: list[tuple[str, str, str]]) -> None:
    names = [cell_name(recipe, {"a": first, "b.c": second}) for recipe, first, second in cells]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) < 200 and not name.startswith(".")
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.=+-,")


def test_a_cell_s_name_is_readable() -> None:
    assert cell_name("clip", {}) == "clip"
    assert (
        cell_name("clip", {"train.batch_size": "24", "train.steps": "50"}) == "clip,train.batch_size=24,train.steps=50"
    )
    assert cell_name("clip", {"data.train": "/a b/*.tar"}).startswith("clip,data.train=-a-b-.tar-")


def grid(
    tmp_path: Path, *sets: str, recipes: tuple[str, ...] = (CLIP, SUPERCLIP), overrides: tuple[str, ...] = (), seeds="1"
):
    return make_grid(recipes, overrides, sets, parse_seeds(seeds), tmp_path / "out", ["python"])


def test_the_grid_is_recipes_by_sets_by_seeds(tmp_path: Path) -> None:
    sets = ["train.batch_size=24,48 & train.steps=40,20", "engine.precision=float32,bf16"]
    runs, recipes = grid(tmp_path, *sets, overrides=("data.streams=2",), seeds="2")
    assert len(runs) == len(recipes) == 2 * 2 * 2 * 2
    assert [run.seed for run in runs] == [0] * 8 + [1] * 8, "a table over all cells comes first"
    for run, recipe in zip(runs, recipes, strict=True):
        assert run.folder == recipe.run_dir == tmp_path / "out" / run.cell / f"seed-{run.seed}"
        assert run.command[0] == "python" and run.command[1].endswith("tools/train.py")
        assert load_recipe(run.command[2], run.command[3:], world_size=1) == recipe
        assert (run.recipe, run.seed, run.steps) == (recipe.name, recipe.train.seed, recipe.train.steps)
        assert run.steps * run.batch_size == 960
        assert recipe.data.streams == 2
    assert not (tmp_path / "out").exists(), "resolving writes nothing"


def test_a_folder_of_any_name_reaches_the_run(tmp_path: Path) -> None:
    out = tmp_path / "a: b #c {1,2} 'é"
    runs, _ = make_grid([CLIP], [], [], [0], out, ["python"])
    assert load_recipe(runs[0].command[2], runs[0].command[3:]).run_dir == out / "clip/seed-0"


@pytest.mark.parametrize(
    ("sets", "overrides", "says"),
    [
        (["train.steps=5,x"], [], "train.steps: given 'x'"),
        (["objectives.classification.weight=1,2"], [], "clip.yaml: objectives.classification: given"),
        (["train.stesp=5"], [], "did you mean 'steps'"),
        (["train.steps=5", "train.steps=6"], [], "--set train.steps: this key is given twice"),
        (["train.steps=5,6"], ["train.steps=7"], "--set train.steps: this key is given twice"),
        (["train.steps=5,6,5"], [], "clip,train.steps=5 is in the grid twice"),
        (["train.seed=1,2"], [], "--seeds decides it"),
        ([], ["run.dir=x"], "--out decides it"),
        ([], ["data.validation=null"], "data.validation: null"),
    ],
)
def test_a_mistake_anywhere_in_the_grid_is_found_first(tmp_path: Path, sets: list, overrides: list, says: str) -> None:
    with pytest.raises(UserError) as error:
        grid(tmp_path, *sets, recipes=(SUPERCLIP, CLIP), overrides=tuple(overrides))
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "clip.yaml"
    other.write_text(f"extends: {CLIP}\n")
    with pytest.raises(UserError, match=r"clip is in the grid twice; .* a name of its own"):
        grid(tmp_path, recipes=(CLIP, str(other)))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    _, (*_, last) = grid(tmp_path, "train.batch_size=32,64")
    last.run_dir.mkdir(parents=True)
    save_recipe(last, last.run_dir / "recipe.yaml")
    (last.run_dir / "metrics.jsonl").touch()
    grid(tmp_path, "train.batch_size=32,64", overrides=("train.log_every=3",))
    with pytest.raises(
        UserError, match=r"holds a run of another recipe: train.steps is 1000 there and 9 here; .*--out"
    ):
        grid(tmp_path, "train.batch_size=32,64", overrides=("train.steps=9",))


def test_metrics_are_known_before_training(tmp_path: Path) -> None:
    _, clip = grid(tmp_path, recipes=(CLIP,))
    _, both = grid(tmp_path, recipes=(CLIP, FLAIR))
    assert choose_metrics(None, clip) == [AGNOSTIC]
    assert choose_metrics(None, both) == [AGNOSTIC, CONDITIONED]
    _, long = grid(tmp_path, recipes=(CLIP,), overrides=("evaluation.captions=[long]",))
    assert choose_metrics(None, long) == ["retrieval.long.agnostic.text_to_image_r1"]
    assert choose_metrics(["segmentation.patch_tokens.mean_iou", AGNOSTIC], clip) == [
        "segmentation.patch_tokens.mean_iou",
        AGNOSTIC,
    ]
    with pytest.raises(UserError, match=r"did you mean .*; there are retrieval.short.agnostic.*segmentation"):
        choose_metrics([CONDITIONED], clip)
    _, none = grid(tmp_path, recipes=(CLIP,), overrides=("evaluation.tasks=[segmentation]",))
    with pytest.raises(UserError, match="has no retrieval"):
        choose_metrics(None, none)
    names = {name.rsplit(".")[-1] for name in report.retrieval_metrics(clip[0])}
    assert names == set(retrieval_metrics(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)))


def make_run(out: Path, recipe: str, seed: int, script: str = "", **settings: str) -> Run:
    """A run whose training is a line of Python; `F` in it is the run's folder."""
    cell = cell_name(recipe, settings)
    folder = out / cell / f"seed-{seed}"
    program = f"from pathlib import Path; F = Path({str(folder)!r}); " + script
    return Run(cell, recipe, settings, seed, 10, 8, folder, [sys.executable, "-c", program])


def finish(run: Run, agnostic: float, conditioned: float | None = None) -> Run:
    """As training leaves it, after half a second a step and a line cut off."""
    run.folder.mkdir(parents=True, exist_ok=True)
    scores = {"agnostic": agnostic} | ({"conditioned": conditioned} if conditioned is not None else {})
    content = {"step": 10, "retrieval": {"short": {name: {"text_to_image_r1": r} for name, r in scores.items()}}}
    (run.folder / "evaluation.json").write_text(json.dumps(content))
    (run.folder / "model.safetensors").touch()
    lines = [json.dumps({"step": step, "step_seconds": seconds}) for step, seconds in ((4, 3.0), (8, 6.0), (10, 12.0))]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1')
    return run


def test_a_table_holds_means_and_deviations(tmp_path: Path) -> None:
    clip = [finish(make_run(tmp_path, "clip", seed), value) for seed, value in enumerate((20.0, 23.0, 24.5))]
    flair = [finish(make_run(tmp_path, "flair", 0), 30.0, 40.0), *(make_run(tmp_path, "flair", n) for n in (1, 2))]
    comparison = compare([*clip, *flair], [AGNOSTIC, CONDITIONED], tmp_path)
    first, second = comparison["cells"]
    assert first["mean"] == {AGNOSTIC: pytest.approx(22.5)}
    assert first["std"] == {AGNOSTIC: pytest.approx(statistics.stdev([20.0, 23.0, 24.5]))}
    assert second["mean"] == {AGNOSTIC: 30.0, CONDITIONED: 40.0}
    assert second["std"] == {}
    assert [run["minutes"] for run in first["runs"]] == [pytest.approx((4 * 3 + 4 * 6 + 2 * 12) / 60)] * 3
    assert table_rows(comparison, brief=False) == [
        [
            *("recipe", "T2I R@1 (short agnostic)", "by seed", "T2I R@1 (short conditioned)", "by seed"),
            *("seeds", "samples seen", "minutes"),
        ],
        ["clip", "22.50 ± 2.29", "20.00, 23.00, 24.50", "-", "-, -, -", "3", "80", "1.0"],
        ["flair", "30.00", "30.00, -, -", "40.00", "40.00, -, -", "1 of 3", "80", "1.0"],
    ]
    assert table_rows(comparison, brief=True)[1:] == [
        ["clip", "22.50 ± 2.29", "-", "3"],
        ["flair", "30.00", "40.00", "1 of 3"],
    ]
    text = to_markdown(comparison, plotted=True)
    assert "| clip | 22.50 ± 2.29 | 20.00, 23.00, 24.50 |" in text
    assert "by seed: 0, 1, 2" in text and "Not finished: `flair/seed-1`, `flair/seed-2`." in text


def test_a_comparison_comes_back_from_its_json(tmp_path: Path) -> None:
    runs = [
        finish(make_run(tmp_path, "clip", seed, **{"a|b": value}), 20.0) for seed in (0, 1) for value in ("x", "y|z")
    ]
    written = write_comparison(runs, [AGNOSTIC], tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == written
    again, metrics = read_comparison(tmp_path)
    assert sorted(again, key=str) == sorted(runs, key=str) and metrics == [AGNOSTIC]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert r"| clip | y\|z |" in (tmp_path / "comparison.md").read_text()
    for broken in ("", "[]", "{}", '{"cells": [{}], "metrics": []}'):
        (tmp_path / "comparison.json").write_text(broken)
        with pytest.raises(UserError, match="no comparison at"):
            read_comparison(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_comparison(tmp_path / "none")


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    run = finish(make_run(tmp_path, "clip", 0), 20.0)
    require_measured([run], [AGNOSTIC, "step"])
    with pytest.raises(UserError, match=r"in no evaluation.json; did you mean .*; there are step, retrieval"):
        require_measured([run], [CONDITIONED])
    require_measured([make_run(tmp_path, "clip", 1)], [CONDITIONED])
    (run.folder / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"write it anew: tools/evaluate.py"):
        compare([run], [AGNOSTIC], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*: cannot write there"):
        write_comparison([make_run(tmp_path / "file", "clip", 0)], [AGNOSTIC], tmp_path / "file")


def test_labels() -> None:
    assert label(CONDITIONED) == "T2I R@1 (short conditioned)"
    assert label("segmentation.patch_tokens.mean_iou") == "mean iou (segmentation patch tokens)"
    assert label("seconds") == "seconds"


def test_the_plot_s_axis_is_the_one_sweep(tmp_path: Path) -> None:
    def cells(*settings: dict[str, str]) -> list[dict]:
        return [{"settings": setting} for setting in settings]

    assert swept_keys(cells({}, {})) == []
    assert swept_keys(cells({"a": "1"}, {"a": "2"}, {"a": "1"}, {"a": "2"})) == ["a"]
    assert swept_keys(cells({"a": "1", "b": "4", "c": "0"}, {"a": "2", "b": "3", "c": "0"})) == ["a", "b"]
    assert swept_keys(cells(*({"a": a, "b": b} for a in "12" for b in "12"))) == []
    assert positions(["24", "1.e-3"]) == [24.0, 0.001]
    assert positions(["cls", "1"]) == positions(["nan", "1"]) == positions(["1", "1.0"]) == [0.0, 1.0]

    sweeps = [[{"lr": "1.e-4"}, {"lr": "1.e-2"}], [{"pool": "$a_"}, {"pool": "$b^"}], [{}]]
    sweeps.append([{"a": a, "b": b} for a in "12" for b in "12"])
    for i, choices in enumerate(sweeps):
        runs = [
            make_run(tmp_path / str(i), name, n, **s) for name in ("clip", "flair") for n in (0, 1) for s in choices
        ]
        for n, run in enumerate(runs[:-1]):
            finish(run, 20.0 + n, 30.0 - n if run.recipe == "flair" else None)
        assert draw(compare(runs, [AGNOSTIC, CONDITIONED], tmp_path / str(i))).startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_comparison([finish(make_run(tmp_path, "clip", 0), 20.0)], [AGNOSTIC], tmp_path)
    (tmp_path / "comparison.png").unlink()
    monkeypatch.setattr(report, "has_matplotlib", lambda: False)
    comparison = write_comparison(*read_comparison(tmp_path), tmp_path)
    report.print_comparison(comparison, tmp_path, report.Console())
    assert capsys.readouterr().out.count("pip install 'vlp[plot]'") == 1
    assert not (tmp_path / "comparison.png").exists()
    assert "20.00" in (tmp_path / "comparison.md").read_text()


TRAINED = "(F / 'evaluation.json').write_text('{}'); (F / 'model.safetensors').touch(); print('trained')"


def test_finished_runs_are_skipped_and_a_failure_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = finish(make_run(tmp_path, "clip", 0, "raise SystemExit('never run')"), 20.0)
    fails = make_run(tmp_path, "clip", 1, "print('one\\n' * 9); raise SystemExit('no such shards')")
    empty = make_run(tmp_path, "clip", 2, "pass")
    trains = make_run(tmp_path, "clip", 3, TRAINED)
    ended = []
    failed = train_grid([there, fails, empty, trains], 1, lambda run: ended.append(run) or "R@1 5.00")
    assert failed == [fails, empty] and ended == [trains]
    assert not (there.folder / "train.log").exists()
    out = capsys.readouterr().out
    assert "4 runs, 1 of them finished already" in out
    assert "[2/4] clip/seed-1 starts\n[2/4] clip/seed-1: failed (exit code 1); the end of " in out
    assert "    one\n    no such shards\n" in out
    assert "[3/4] clip/seed-2: failed (it ended without evaluation.json)" in out
    assert "[4/4] clip/seed-3: R@1 5.00; 0.0 min of training; about 0 min left" in out

    assert train_grid([there, trains], 1, str) == [], "what has finished is not run again"
    assert (trains.folder / "train.log").read_text() == "trained\n"


def test_jobs_run_beside_each_other(tmp_path: Path) -> None:
    """Each of two waits for the other; a third takes the place of the first to end."""
    meet = "import sys, time; (F.parent / f'{F.name}-{sys.argv[1]}').touch(); "
    meet += "[time.sleep(0.05) for _ in range(600) if len(list(F.parent.glob('seed-*-*'))) < 2]; "
    runs = [make_run(tmp_path, "clip", seed, meet + TRAINED) for seed in range(3)]
    for run in runs:
        run.command.append("{job}")
    started = time.monotonic()
    assert train_grid(runs, 2, lambda run: "") == []
    assert time.monotonic() - started < 25, "they did not meet"
    first, second, third = sorted(path.name for path in (tmp_path / "clip").glob("seed-*-*"))
    assert (first, second) == ("seed-0-0", "seed-1-1") and third in ("seed-2-0", "seed-2-1")


def test_each_job_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert "OMP_NUM_THREADS" not in environment(0, 1), "what is launched divides the threads over its ranks"
    assert [environment(0, jobs)["OMP_NUM_THREADS"] for jobs in (2, 3, 9)] == ["4", "2", "1"]
    check_jobs(9)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(0, 2)["OMP_NUM_THREADS"] == "3", "the user's word counts"

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "CUDA_VISIBLE_DEVICES" not in environment(0, 1)
    assert [environment(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert [environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["7,5", "3,1"]
    for jobs, says in ((0, "1 to 4"), (5, "1 to 4, one for each GPU")):
        with pytest.raises(UserError, match=says):
            check_jobs(jobs)


def test_the_time_left_is_by_the_pace_of_the_recipe(tmp_path: Path) -> None:
    done = finish(make_run(tmp_path, "clip", 0), 20.0)  # a minute for 10 steps
    waits, other = make_run(tmp_path, "clip", 1), make_run(tmp_path, "flair", 0)
    assert minutes_left([waits, other], [waits, other], 1) == 0.0
    assert minutes_left([done, waits, other], [waits, other], 1) == pytest.approx(2.0)
    other.folder.mkdir(parents=True)
    (other.folder / "metrics.jsonl").write_text('{"step": 5, "step_seconds": 24}\n')
    assert minutes_left([done, waits, other], [waits, other], 1) == pytest.approx(1.0 + 2.0)
    assert minutes_left([done, waits, other], [waits, other], 2) == pytest.approx(1.5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_runs_and_what_they_started(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(running, "GRACE_SECONDS", 1.0)
    inherited = signal.signal(number, signal.default_int_handler)  # a suite in the background ignores SIGINT
    request.addfinalizer(lambda: signal.signal(number, inherited))
    child = "'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'"
    script = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child}], stdout=subprocess.PIPE); "
    script += "p.stdout.readline(); (F / 'pid.partial').write_text(str(p.pid)); "
    script += "(F / 'pid.partial').rename(F / 'pid'); p.wait()"
    runs = [make_run(tmp_path, "clip", seed, script) for seed in range(3)]

    def stop_when_started() -> None:
        while not all((run.folder / "pid").exists() for run in runs[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_started, daemon=True).start()
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train_grid(runs, 2, lambda run: "")
    assert signal.getsignal(number) == before
    assert "the same command goes on" in capsys.readouterr().out
    assert not runs[2].folder.exists()
    pids = [int((run.folder / "pid").read_text()) for run in runs[:2]]
    deadline = time.monotonic() + 10  # nobody waits for a grandchild that was killed: the system ends it in its time
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    """A zombie, whose new parent has not asked for it yet, is not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no recipe given"),
        ([CLIP, "--jobs", "0"], "--jobs 0"),
        ([CLIP, "--metric", "retrieval.short.agnostic.r1"], "--metric retrieval.short.agnostic.r1: not evaluated here"),
        ([CLIP, "--table-only"], "leave recipes, overrides and --set out"),
        (["--table-only"], "no comparison at"),
        ([CLIP, "train.steps=2", SUPERCLIP, "--set", "train.stesp=1,2"], "did you mean 'steps'"),
    ],
)
def test_the_command_s_mistakes(
    tmp_path: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("tools/compare.py", *arguments, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_recipes_and_two_seeds(
    repository: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command from end to end; again, which trains nothing; and its table anew, with another metric."""
    out = tmp_path / "out"
    arguments = [CLIP, FLAIR, *tiny, "--seeds", "2", "--jobs", "2", "--out", str(out)]
    command = [sys.executable, "tools/compare.py", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[4/4] flair/seed-1: T2I R@1 (short agnostic) " in done.stdout
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["metrics"] == [AGNOSTIC, CONDITIONED]
    for cell, metrics in zip(comparison["cells"], [[AGNOSTIC], [AGNOSTIC, CONDITIONED]], strict=True):
        assert list(cell["mean"]) == list(cell["std"]) == metrics
        for run in cell["runs"]:
            evaluation = json.loads((out / run["folder"] / "evaluation.json").read_text())
            scores = evaluation["retrieval"]["short"]
            assert list(run["values"].values()) == [scores[name.split(".")[2]]["text_to_image_r1"] for name in metrics]
            assert run["minutes"] > 0
    table, logs = (out / "comparison.md").read_text(), [(path, path.read_text()) for path in out.rglob("train.log")]
    assert len(logs) == 4

    assert run_tool("tools/compare.py", *arguments) == 0
    assert "4 runs, 4 of them finished already" in capsys.readouterr().out
    assert (out / "comparison.md").read_text() == table
    assert [(path, path.read_text()) for path, _ in logs] == logs

    long = "retrieval.long.agnostic.image_to_text_r5"
    assert run_tool("tools/compare.py", "--table-only", "--out", out, "--metric", long) == 0
    assert "I2T R@5 (long agnostic)" in (out / "comparison.md").read_text()
    assert run_tool("tools/compare.py", "--table-only", "--out", out, "--metric", "retrieval.longer") == 2
    assert "I2T R@5 (long agnostic)" in (out / "comparison.md").read_text()
