"""Which shards patterns match, and the order in which an epoch reads sources of different weights."""

from collections import Counter
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data import sources
from vlp.data.sources import ShardMixture, expand_shards, expand_sources, training_mixture
from vlp.errors import UserError
from vlp.recipe import SHIPPED_RECIPES, load_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        (folder / f"{shard:05d}.tar").write_bytes(b"")
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
    monkeypatch.setattr(sources, "demo_shards", lambda cache: asked.append(cache) or folder)
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


@pytest.mark.parametrize("protocol", ["s3", "hf"])
def test_file_systems_that_the_docs_name_can_be_loaded(protocol: str) -> None:
    assert protocol in fsspec.get_filesystem_class(protocol).protocol


# ---- mixtures ---------------------------------------------------------------------------------------------------


def test_a_list_and_colons_separate_sources(folder: Path) -> None:
    names = [str(folder / f"{shard:05d}.tar") for shard in range(3)]
    assert expand_sources([f"{folder}/0000{{0..1}}.tar", names[2]]) == [names[:2], names[2:]]
    assert expand_sources(f"{folder}/0000{{0..1}}.tar::{names[2]}") == [names[:2], names[2:]]
    assert expand_sources("pipe:curl http://a::b") == [["pipe:curl http://a::b"]]


def test_one_source_is_read_once_an_epoch_in_another_order() -> None:
    mixture = ShardMixture([[str(i) for i in range(20)]], [1.0], seed=3)
    orders = [mixture.order(epoch) for epoch in range(4)]
    assert len(mixture) == 20 and mixture.order(2) == orders[2]
    for epoch, order in enumerate(orders):
        assert sorted(order) == [(shard, epoch) for shard in range(20)]
    assert len({tuple(shard for shard, _ in order) for order in orders}) == 4


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.02, 4)), min_size=1, max_size=4),
    st.integers(0, 5),
    st.integers(1, 12),
)
@settings(max_examples=80, deadline=None)
def test_sources_are_read_by_weight_and_no_shard_ahead_of_the_others(
    sizes: list[tuple[int, float]], seed: int, epochs: int
) -> None:
    shards = [[f"{source}/{i}" for i in range(size)] for source, (size, _) in enumerate(sizes)]
    mixture = ShardMixture(shards, [weight for _, weight in sizes], seed)
    read = [pair for epoch in range(epochs) for pair in mixture.order(epoch)]
    assert len(read) == epochs * len(mixture) and len(set(read)) == len(read)  # a shard and its turn once
    turns = Counter(mixture.shards[shard] for shard, _ in read)
    for (size, weight), names in zip(sizes, shards, strict=True):
        counts = [turns[name] for name in names]
        assert sum(counts) == epochs * max(1, round(size * weight))
        assert max(counts) - min(counts) <= 1


def test_weights_of_a_recipe(folder: Path) -> None:
    def mixture(*overrides: str) -> ShardMixture:
        train = f"data.train=['{folder}/0000{{0..1}}.tar', '{folder}/00002.tar']"
        return training_mixture(load_recipe(SHIPPED_RECIPES / "clip.yaml", [train, *overrides], world_size=1))

    twice = mixture("data.streams=4", "data.weights=[1, 2]")
    names = [twice.shards[shard] for shard, _ in twice.order(0)]
    assert Counter(Path(name).stem for name in names) == {"00000": 1, "00001": 1, "00002": 2}
    with pytest.raises(UserError, match=r"data\.weights: 3 weights for 2 sources of data\.train; give one each"):
        mixture("data.streams=1", "data.weights=[1, 2, 3]")
    with pytest.raises(
        UserError, match=r"3 shards for data\.streams=4 readers; set data\.streams=3 or fewer, or write"
    ):
        mixture("data.streams=4")
    with pytest.raises(UserError, match=r"data\.weights"):
        mixture("data.streams=1", "data.weights=[1, 0]")
