"""Shards to annotated shards: nothing of a sample is lost, restarting, broken samples and shards, Ray."""

import io
import json
import sys
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import ray
import webdataset

from vlp.annotation.gathering import gather_shards
from vlp.annotation.shards import Item, annotate_shard, annotate_shards
from vlp.annotation.statistics import CountSettings
from vlp.data.shards import read_shard
from vlp.errors import UserError
from vlp.settings import FieldMap


def number_samples(items: list[Item]) -> Counter[str]:
    """Adds the number of the sample within its batch."""
    for number, item in enumerate(items):
        item.annotations["number"] = number
        item.drop = item.annotations.get("unwanted", False)
    return Counter(numbered=len(items), batches=1)


def make(calls: Path | None = None):
    if calls:
        calls.write_text(f"{calls.read_text() if calls.exists() else ''}made ")
    return number_samples


def make_nothing():
    raise UserError("no such model")


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Two shards of five samples: ordinary ones, one to be dropped, one of broken JSON, one without JSON."""
    names = []
    for shard in range(2):
        path = tmp_path / f"in/{shard}.tar"
        path.parent.mkdir(exist_ok=True)
        with webdataset.TarWriter(str(path), encoder=False) as tar:
            for number, record in enumerate(
                [b'{"url": "u"}', b'{"unwanted": true}', b"[1]", None, b'{"a": {"b": [1]}}']
            ):
                files = {"jpg": bytes([shard, number]) * 9, "txt": b"a caption", "seg.png": b"mask"}
                tar.write({"__key__": f"{shard}{number}"} | files | ({"json": record} if record else {}))
        names.append(str(path))
    return names


def records(path: Path) -> dict[str, bytes]:
    return {raw["__key__"]: raw["json"] for raw in read_shard(str(path))}


def test_every_file_is_written_again_and_only_the_json_changes(shards: list[str], tmp_path: Path) -> None:
    counts = annotate_shards(shards, tmp_path / "out", make, {"tool": "number"}, batch_size=3)
    assert counts == {"samples": 10, "numbered": 8, "batches": 4, "json_is_not_an_object": 2, "dropped": 2}
    for shard, name in enumerate(shards):
        before = {raw["__key__"]: raw for raw in read_shard(name)}
        after = {raw["__key__"]: raw for raw in read_shard(str(tmp_path / f"out/{shard}.tar"))}
        assert list(after) == [key for key in before if key != f"{shard}1"]
        for key, raw in after.items():
            assert all(raw[suffix] == before[key][suffix] for suffix in ("jpg", "txt", "seg.png"))
        found = [json.loads(raw["json"]) for raw in after.values()]
        assert found == [{"url": "u", "number": 0}, [1], {"number": 0}, {"a": {"b": [1]}, "number": 1}]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary == {"shards": 2} | counts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("0.tar", "0_stats.json", "1.tar", "1_stats.json", "annotation.json", "summary.json")
    ]


def test_the_same_command_again_does_what_is_left(shards: list[str], tmp_path: Path) -> None:
    out, calls = tmp_path / "out", tmp_path / "calls"
    counts = annotate_shards(shards, out, partial(make, calls), {"a": 1})
    whole = (out / "1.tar").read_bytes()
    assert annotate_shards(shards, out, partial(make, calls), {"a": 1}) == counts and calls.read_text() == "made "
    (out / "1.tar").unlink()
    (out / "1_stats.json").unlink()
    (out / "0.tar").write_bytes(b"not touched")
    assert annotate_shards(shards, out, partial(make, calls), {"a": 1}) == counts and calls.read_text() == "made made "
    assert (out / "1.tar").read_bytes() == whole and (out / "0.tar").read_bytes() == b"not touched"


def test_a_failure_leaves_no_half_written_shard(shards: list[str], tmp_path: Path) -> None:
    def fail(items: list[Item]) -> Counter[str]:
        raise KeyboardInterrupt

    tmp_path.joinpath("out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        annotate_shard(shards[0], tmp_path / "out", fail, 2)
    assert not list((tmp_path / "out").iterdir())


def test_a_broken_shard_is_told_after_all_others_were_written(shards: list[str], tmp_path: Path) -> None:
    whole = Path(shards[0]).read_bytes()
    Path(shards[0]).write_bytes(whole[:9000])
    with pytest.raises(UserError, match=r"1 of 2 shards failed, first .*0\.tar: not a readable tar shard"):
        annotate_shards(shards, tmp_path / "out", make, {})
    assert len(records(tmp_path / "out/1.tar")) == 4 and not (tmp_path / "out/0.tar").exists()
    Path(shards[0]).write_bytes(whole)
    assert annotate_shards(shards, tmp_path / "out", make, {})["samples"] == 10


def test_what_is_refused(shards: list[str], tmp_path: Path) -> None:
    annotate_shards(shards, tmp_path / "out", make, {"score": 0.3, "model": "a"})
    with pytest.raises(UserError, match=r"holds shards made with score=0\.3, not 0\.1; give another folder"):
        annotate_shards(shards, tmp_path / "out", make, {"score": 0.1, "model": "a"})
    with pytest.raises(UserError, match=r"1 shard names occur twice, as 0\.tar; annotate each source into an --out of"):
        annotate_shards([shards[0], shards[0]], tmp_path / "other", make, {})
    with pytest.raises(UserError, match=r"--out .*/in holds the shards that are read; give another folder"):
        annotate_shards(shards, tmp_path / "in", make, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*/file cannot be written \(File exists\)"):
        annotate_shards(shards, tmp_path / "file", make, {})


def test_a_name_that_leaves_its_folder_is_not_written_again(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("../up.txt", "/etc/x.txt", "fine.txt"):
            header = tarfile.TarInfo(name)
            header.size = 1
            tar.addfile(header, io.BytesIO(b"t"))
    counts = annotate_shards([str(tmp_path / "0.tar")], tmp_path / "out", make, {})
    assert counts["unsafe_name"] == 2 and counts["dropped"] == 2
    with tarfile.open(tmp_path / "out/0.tar") as tar:
        assert sorted(tar.getnames()) == ["fine.json", "fine.txt"]


def test_captions_are_those_that_training_reads() -> None:
    item = Item("k", {"txt": b"alt text"}, {"long": ["A. B."], "mine": "short one"})
    found = item.captions(FieldMap(short="mine"))
    assert found == {"raw": ["alt text"], "short": ["short one"], "long": ["A. B."]}
    assert "raw" not in item.annotations


@pytest.mark.slow
def test_ray_writes_the_same(shards: list[str], tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not import tests
    here = annotate_shards(shards, tmp_path / "here", make, {}, batch_size=2)
    there = annotate_shards(shards, tmp_path / "there", make, {}, batch_size=2, engine="ray", actors=2)
    assert here == there
    for shard in range(2):
        assert (tmp_path / f"here/{shard}.tar").read_bytes() == (tmp_path / f"there/{shard}.tar").read_bytes()
    Path(shards[1]).write_bytes(b"garbage" * 1000)
    with pytest.raises(UserError, match=r"1 of 2 shards failed, first .*1\.tar"):
        annotate_shards(shards, tmp_path / "again", make, {}, engine="ray", actors=1)
    with pytest.raises(UserError, match=r"2 of 2 shards failed, first no such model"):
        annotate_shards(shards, tmp_path / "none", make_nothing, {}, engine="ray", actors=1)

    settings, good = CountSettings(), shards[:1]
    counted, repeats = gather_shards(good, settings, tmp_path / "local", workers=1)
    on_ray, ray_repeats = gather_shards(good, settings, tmp_path / "ray", workers=1, engine="ray")
    assert counted.samples == on_ray.samples == 5 and repeats == ray_repeats
    assert counted.tokens == on_ray.tokens and (counted.frequency_V == on_ray.frequency_V).all()
