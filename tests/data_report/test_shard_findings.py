"""Shards that are too few, empty, broken or uneven, and files that a recipe names."""

import json
from pathlib import Path

import pytest
import torch
from planted import by_problem, check, make_recipe, sample, write_shard, write_shards
from safetensors.torch import save_file

from vlp.data import shards as shards_module
from vlp.data_report.shard_findings import file_findings


def test_too_few_shards_and_idle_workers(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(number) for number in range(8)], shards=4)
    found = by_problem(check(make_recipe(tmp_path, "data.streams=8", "data.workers=4")))
    assert set(found) == {"too_few_shards"}
    assert found["too_few_shards"].severity == "error" and found["too_few_shards"].count == 4
    assert found["too_few_shards"].mend.startswith("data.streams=4, or write more shards with fewer samples each")
    recipe = make_recipe(tmp_path, "data.streams=4", "data.workers=4")
    found = by_problem(check(recipe, ranks=2))
    assert set(found) == {"idle_workers"} and found["idle_workers"].count == 2
    assert "it has 2 of data.streams=4" in found["idle_workers"].what
    assert found["idle_workers"].mend.startswith("data.workers=2; for more, write more shards")
    assert found["idle_workers"].mend.endswith("at least 8")
    found = by_problem(check(make_recipe(tmp_path, "data.streams=2", "data.workers=4")))
    assert found["idle_workers"].mend == "data.streams=4"


def test_empty_and_uneven_shards(tmp_path: Path) -> None:
    for shard in range(10):
        count = {7: 0, 8: 0, 9: 40}.get(shard, 4)
        write_shard(tmp_path / f"{shard}.tar", [sample(100 * shard + number) for number in range(count)])
    found = by_problem(check(make_recipe(tmp_path)))
    assert (found["empty_shard"].count, found["empty_shard"].of) == (2, 10)
    assert found["empty_shard"].shard == str(tmp_path / "7.tar")
    assert (found["uneven_shards"].count, found["uneven_shards"].of) == (1, 8)
    assert found["uneven_shards"].shard == str(tmp_path / "9.tar") and found["uneven_shards"].severity == "warning"


def test_empty_shards_that_were_not_read_are_found_too(tmp_path: Path) -> None:
    for shard in range(20):
        write_shard(tmp_path / f"{shard:02d}.tar", [sample(10 * shard + i) for i in range(0 if shard % 5 == 0 else 3)])
    finding = by_problem(check(make_recipe(tmp_path), samples=4))["empty_shard"]
    assert (finding.count, finding.of) == (4, 20)


def test_all_shards_empty(tmp_path: Path) -> None:
    write_shards(tmp_path, [])
    report = check(make_recipe(tmp_path))
    assert [finding.problem for finding in report.findings] == ["no_samples", "empty_shard"] and report.errors == 1


@pytest.mark.parametrize(("broken", "severity"), [(1, "warning"), (3, "error")])
def test_shards_that_cannot_be_read(tmp_path: Path, monkeypatch, broken: int, severity: str) -> None:
    monkeypatch.setattr(shards_module, "RETRY_SECONDS", ())
    write_shards(tmp_path, [sample(number) for number in range(40)], shards=5)
    for shard in range(broken):
        path = tmp_path / f"{shard}.tar"
        path.write_bytes(path.read_bytes()[:5000])
    finding = next(f for f in check(make_recipe(tmp_path)).findings if f.problem == "unreadable_shard")
    assert (finding.severity, finding.count, finding.of) == (severity, broken, 5)
    assert "not a readable tar shard" in finding.value and finding.shard in finding.value


def test_only_as_many_samples_as_asked_for_spread_over_the_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(number) for number in range(120)], shards=4)
    report = check(make_recipe(tmp_path), samples=40)
    assert (report.samples, report.shards_read) == (40, 4)
    assert json.loads(report.to_json())["samples"] == 40


def test_files_that_the_recipe_names(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(0)])
    statistics = tmp_path / "idf.safetensors"
    static = ("objectives.classification.idf=static", f"objectives.classification.idf_file={statistics}")
    right = {"frequency": torch.zeros(49_408, dtype=torch.int64), "documents": torch.ones(1, dtype=torch.int64)}
    for content, wrong in {
        "right": "",
        "no documents": "has no documents",
        "short": "holds frequencies of shape [10], not of 49408 tokens",
        "text": "cannot be read as safetensors",
    }.items():
        made = {"no documents": {"frequency": right["frequency"]}, "short": right | {"frequency": torch.zeros(10)}}
        save_file(made.get(content, right), statistics)
        if content == "text":
            statistics.write_text("a table")
        findings = file_findings(make_recipe(tmp_path, *static))
        assert [finding.what for finding in findings] == [wrong] * bool(wrong)
        assert all("tools/prepare_statistics.py" in finding.mend for finding in findings)
    (finding,) = file_findings(make_recipe(tmp_path, "data.validation=/nowhere/*.tar"))
    assert finding.severity == "error" and "matches no shard" in finding.what
