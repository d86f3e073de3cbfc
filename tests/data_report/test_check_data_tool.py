"""tools/check_data.py: exit codes, what it prints and what it writes."""

import json
from pathlib import Path

import pytest
from planted import sample, tiny_overrides, write_shards
from random_run import REPOSITORY, run_tool

RECIPE = REPOSITORY / "recipes/goldi_super.yaml"


def check(folder: Path, *arguments: object) -> int:
    few = ("--samples", 20, "--seconds", 0)
    return run_tool("tools/check_data.py", RECIPE, *tiny_overrides(folder), *few, *arguments)


def test_a_clean_set(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path, [sample(number) for number in range(40)])
    page, listing = tmp_path / "new/page.html", tmp_path / "report.json"
    assert check(tmp_path, "--seconds", 0.05, "--out", page, "--json", listing, "--images-per-second", 1) == 0
    text = capsys.readouterr().out
    assert text.startswith("goldi_super at scale demo: 20 samples of 2 of 2 shards; 20 are usable")
    assert (
        "0 errors, 0 warnings, 0 notes" in text and "To feed 1 images a second the recipe needs 1 worker a rank" in text
    )
    assert text.index("0 errors") < text.index("To feed")
    written = json.loads(listing.read_text())
    assert (written["errors"], written["samples"], written["findings"]) == (0, 20, [])
    assert written["speeds"][0]["workers"] == 1 and written["speeds"][0]["images_per_second"] > 0
    assert page.read_text().count("<article>") == 20


def test_errors_are_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path, [sample(number, {"vqa": [], "short": ["[/bold] a\x1b[2Jcat"]}) for number in range(10)])
    listing = tmp_path / "report.json"
    assert check(tmp_path, "--pictures", 0, "--json", listing) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "1 error," in text and "tools/prepare_vqa.py" in text
    assert "[/bold] a\\x1b[2Jcat" in text and "\x1b" not in text
    (error,) = [finding for finding in json.loads(listing.read_text())["findings"] if finding["severity"] == "error"]
    assert (error["problem"], error["count"], error["of"]) == ("no_task", 10, 10)
    assert not list(tmp_path.glob("*.html"))


def test_a_loader_that_stops_is_an_error(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two shards has no usable sample, which stops the reader that has it alone."""
    write_shards(tmp_path, [sample(n, png=b"none") if n % 2 else sample(n) for n in range(8)])
    overrides = ("data.workers=2", "data.bad_share=1", "--pictures", 0)
    assert check(tmp_path, "--seconds", 0.05, *overrides) == 1
    assert "no usable sample" in " ".join(capsys.readouterr().out.split())


def test_the_page_lies_beside_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shards(tmp_path, [sample(number) for number in range(4)])
    assert check(tmp_path, f"run.dir={tmp_path}/runs/a") == 0
    assert (tmp_path / "runs/a-data.html").is_file() and not (tmp_path / "runs/a").exists()
    assert f"{tmp_path}/runs/a-data.html shows 4 of the samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--samples", 0], "--samples: given 0; allowed is 1 or more"),
        (["--seconds", -1], "--seconds: given -1; allowed is 0 or more"),
        (["--seconds", "nan"], "--seconds: given nan; allowed is 0 or more"),
        (["--images-per-second", 0], "--images-per-second: given 0; allowed is more than 0"),
        (["--ranks", 3], "data.streams: 2 does not divide over 3 ranks"),
        (["data.train=/nowhere/*.tar"], "matches no shard"),
        (["--out", "/dev/null/page.html"], "/dev/null/page.html cannot be written"),
        (["--json", "/tmp"], "/tmp is a folder"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path: Path, capsys, arguments: list, line: str) -> None:
    write_shards(tmp_path, [sample(number) for number in range(4)])
    assert check(tmp_path, "--out", tmp_path / "page.html", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and line in told and told.count("\n") == 1
