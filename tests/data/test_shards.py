"""Shard patterns and shards: what matches, what is read, and the one line for what is not readable."""

from contextlib import suppress
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vlp.data import shards
from vlp.data.shards import expand_shards, read_shard, shuffled_shard
from vlp.errors import UserError


def write_shard(path: Path, samples: list[dict]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        names = [f"{shard}-{number}" for number in range(5)]
        write_shard(folder / f"{shard:05d}.tar", [{"__key__": n, "jpg": n.encode() * 200, "txt": b"t"} for n in names])
    return folder


# ---- patterns ---------------------------------------------------------------------------------------------------


def test_globs_braces_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [str(folder / f"{shard:05d}.tar") for shard in range(3)]
    assert expand_shards(f"{folder}/*.tar") == everything
    assert expand_shards(f"{folder}/{{00000..00002}}.tar") == everything
    assert expand_shards(f"{everything[2]}::{everything[0]}") == [everything[2], everything[0]]
    assert expand_shards([everything[1], f"{folder}/0000[02].tar"]) == [everything[1], everything[0], everything[2]]
    assert expand_shards("pipe:cat x.tar") == ["pipe:cat x.tar"]
    assert expand_shards("s3://a/{0..1}.tar") == ["s3://a/0.tar", "s3://a/1.tar"]
    monkeypatch.setenv("HOME", str(folder))
    assert expand_shards("~/00000.tar") == everything[:1]


def test_the_demo_set_is_made_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shards, "demo_shards", lambda cache: asked.append(cache) or folder)
    (folder / "train-0.tar").write_bytes(b"")
    assert expand_shards("demo:train", "/cache") == [str(folder / "train-0.tar")] and asked == ["/cache"]
    with pytest.raises(UserError, match="'demo:trian' is no part of the demo set; allowed are demo:train, demo:valid"):
        expand_shards("demo:trian")


@pytest.mark.parametrize("pattern", ["/nowhere/*.tar", "/nowhere/{0..3}.tar", "", ["a.tar", "b.tar"], "a.tar::b.tar"])
def test_a_pattern_that_matches_nothing(pattern) -> None:
    with pytest.raises(UserError, match=r"data: .*give a tar, a glob, or a brace pattern such as"):
        expand_shards(pattern)


def test_other_patterns_that_name_no_shard(folder: Path) -> None:
    with pytest.raises(UserError, match=r"00003\.tar does not exist"):
        expand_shards(f"{folder}/{{00000..00003}}.tar")
    with pytest.raises(UserError, match="no shards are named"):
        expand_shards([])
    with pytest.raises(UserError, match="has a brace without its partner"):
        expand_shards("/data/{00..")


# ---- reading ----------------------------------------------------------------------------------------------------


def keys(samples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_a_shard_is_read_in_order_and_shuffled_by_its_seed(folder: Path) -> None:
    shard = str(folder / "00000.tar")
    expected = [f"0-{number}" for number in range(5)]
    found = list(read_shard(shard))
    assert keys(found) == expected and found[3]["jpg"] == b"0-3" * 200
    orders = {tuple(keys(shuffled_shard(shard, 5, (0, epoch)))) for epoch in range(20)}
    assert len(orders) > 10 and all(sorted(order) == expected for order in orders)
    assert keys(shuffled_shard(shard, 3, (7,))) == keys(shuffled_shard(shard, 3, (7,)))
    assert keys(shuffled_shard(shard, 1, (7,))) == expected


@given(cut=st.integers(1, 15_000))
@example(cut=512)  # after a header
@example(cut=2048)  # between two files
@example(cut=2049)  # within a header
@example(cut=1100)  # within padding
@example(cut=600)  # within data
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_shard_cut_anywhere_is_whole_or_one_line(folder: Path, tmp_path: Path, cut: int) -> None:
    whole = (folder / "00000.tar").read_bytes()
    shard = tmp_path / "cut.tar"
    shard.write_bytes(whole[:cut])
    with suppress(UserError):
        assert len(list(read_shard(str(shard)))) == 5


def test_a_cut_shard_is_refused_and_not_just_shorter(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "00000.tar").read_bytes()
    for cut in (512, 600, 1100, 2048, 2049, 4096, 6000):
        shard = tmp_path / "cut.tar"
        shard.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cut\.tar: not a readable tar shard \(.*copy it again, or take it out"):
            list(read_shard(str(shard)))


def test_what_is_no_shard_at_all(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.tar"
    garbage.write_bytes(bytes(range(256)) * 100)
    (tmp_path / "nothing.tar").write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    for name, reason in {
        "garbage": "not a readable tar shard",
        "nothing": "not a readable tar shard",
        "folder": "Is a directory",
        "gone": "No such file or directory",
    }.items():
        with pytest.raises(UserError) as raised:
            list(read_shard(str(tmp_path / f"{name}.tar")))
        assert str(raised.value).startswith(f"{tmp_path}/{name}.tar: ") and reason in str(raised.value)


def test_an_empty_shard_has_no_samples(tmp_path: Path) -> None:
    assert list(read_shard(str(write_shard(tmp_path / "empty.tar", [])))) == []


def test_a_pipe_that_fails(folder: Path) -> None:
    assert len(list(read_shard(f"pipe:cat {folder}/00001.tar"))) == 5
    with pytest.raises(UserError, match="not a readable tar shard"):
        list(read_shard("pipe:false"))
