"""Shards: what is read, from which file systems, and the one line for what is not readable."""

import io
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
import webdataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vlp.data import shards
from vlp.data.shards import BadSample, check_name, read_shard, shuffled_shard
from vlp.data.sources import expand_shards
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


# ---- reading ----------------------------------------------------------------------------------------------------


def keys(samples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_a_shard_is_read_in_order_and_shuffled_by_its_seed(folder: Path) -> None:
    shard = str(folder / "00000.tar")
    expected = [f"0-{number}" for number in range(5)]
    found = list(read_shard(shard))
    assert keys(found) == expected and found[3]["jpg"] == b"0-3" * 200
    failures: list[str] = []
    orders = {tuple(keys(shuffled_shard(shard, 5, (0, epoch), failures.append))) for epoch in range(20)}
    assert len(orders) > 10 and all(sorted(order) == expected for order in orders)
    assert len({tuple(keys(shuffled_shard(shard, 3, (7,), failures.append))) for _ in range(3)}) == 1
    assert keys(shuffled_shard(shard, 1, (7,), failures.append)) == expected
    assert not failures


def test_a_shard_that_fails_on_the_way_ends_there_and_says_why(folder: Path, tmp_path: Path) -> None:
    shard, failures = tmp_path / "cut.tar", []
    shard.write_bytes((folder / "00000.tar").read_bytes()[:18_000])
    found = keys(shuffled_shard(str(shard), 100, (0,), failures.append))
    assert set(found) < {f"0-{number}" for number in range(5)} and len(found) >= 2  # those in the buffer are not lost
    assert len(failures) == 1 and failures[0].startswith(f"{shard}: not a readable tar shard")


def test_a_shard_is_opened_again_and_goes_on_where_it_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two times the file system fails, in the middle; nothing is lost or given twice."""
    opened, open_shard = [], shards._open

    class Failing(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            if self.tell() > 4000 and len(opened) <= 2:
                raise OSError("the connection was reset")
            return super().read(min(size, 1024) if size > 0 else size)

    def flaky(shard: str) -> io.BytesIO:
        opened.append(shard)
        with open_shard(shard) as file:
            return Failing(file.read())

    monkeypatch.setattr(shards, "_open", flaky)
    assert keys(read_shard(str(folder / "00002.tar"))) == [f"2-{number}" for number in range(5)]
    assert len(opened) == 3


def test_any_file_system_of_fsspec(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for shard in range(2):
        memory.pipe(f"/bucket/{shard}.tar", (folder / f"{shard:05d}.tar").read_bytes())
    found = expand_shards("memory://bucket/*.tar::memory://bucket/{0..1}.tar")
    assert [name.rsplit("/", 1)[-1] for name in found] == ["0.tar", "1.tar", "0.tar", "1.tar"]
    assert keys(read_shard(found[1])) == [f"1-{number}" for number in range(5)]
    memory.pipe("/bucket/cut.tar", (folder / "00000.tar").read_bytes()[:2100])
    for name, reason in {"cut.tar": "not a readable tar shard", "gone.tar": "not a readable tar shard"}.items():
        with pytest.raises(UserError, match=reason):
            list(read_shard(f"memory://bucket/{name}"))
    with pytest.raises(UserError, match=r"matches no shard \(memory://bucket/x\*\.tar does not exist\)"):
        expand_shards("memory://bucket/x*.tar")
    with pytest.raises(UserError, match=r"'nosuch://a/\*\.tar' cannot be listed"):
        expand_shards("nosuch://a/*.tar")


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_a_name_that_leaves_its_folder_is_no_sample(tmp_path: Path, name: str) -> None:
    """Nothing is ever unpacked; but tools write the names again, for others to unpack."""
    shard = write_shard(tmp_path / "0.tar", [{"__key__": name, "txt": b"t"}])
    (raw,) = read_shard(str(shard))
    with pytest.raises(BadSample, match="unsafe_name"):
        check_name(raw["__key__"])
    check_name("a..b/c")


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
