"""The run folder: it resumes only on the shards that it began with."""

from pathlib import Path

import pytest

from vlp.errors import UserError
from vlp.run import keep_shards


def test_a_run_resumes_only_on_its_shards(tmp_path: Path) -> None:
    shards = [f"/data/{number}.tar" for number in range(3)]
    keep_shards(tmp_path, shards, resumes=False)
    assert (tmp_path / "shards.txt").read_text().split() == ["0.tar", "1.tar", "2.tar"]
    keep_shards(tmp_path, [shard.replace("/data", "s3://elsewhere") for shard in shards], resumes=True)
    with pytest.raises(UserError, match=r"began with 3 shards and finds 4 now, another one is 3\.tar; bring back"):
        keep_shards(tmp_path, [*shards, "/data/3.tar"], resumes=True)
    with pytest.raises(UserError, match=r"began with 3 shards and finds 3 now"):
        keep_shards(tmp_path, shards[::-1], resumes=True)
    keep_shards(tmp_path, shards[:1], resumes=False)  # nothing was trained: it begins anew
    keep_shards(tmp_path, shards[:1], resumes=True)


def test_a_run_from_before_there_was_such_a_list_goes_on(tmp_path: Path) -> None:
    keep_shards(tmp_path, ["/data/0.tar"], resumes=True)
    assert (tmp_path / "shards.txt").read_text() == "0.tar\n"
