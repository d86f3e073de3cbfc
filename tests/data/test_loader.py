"""The order of samples: the same at any number of ranks and workers, exact on resuming, each sample once an epoch."""

import io
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image

from vlp.data import health
from vlp.data.batch import DataNeeds
from vlp.data.captions import CaptionRequest
from vlp.data.loader import START, Loaded, make_loader
from vlp.errors import UserError
from vlp.objectives.graph import graph_needs
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe

SIZES = (9, 4, 7, 1, 6, 5)
BAD = {
    "undecodable_image": {"png": b"no picture"},
    "no_image": {"png": None},
    "json_is_not_an_object": {"json": b"[]"},
    "no_caption": {"json": b"{}"},
}
STEPS = 14


def picture(number: int) -> bytes:
    """A picture of one colour, which tells its number whatever is cropped."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (number, 255 - number, 7)).save(stream, "PNG")
    return stream.getvalue()


def sample(number: int) -> dict:
    """Every third has no questions, every fourth no boxes."""
    record = {
        "raw": f"raw {number}",
        "short": [f"short {number} {word}" for word in "abc"],
        "long": [f"One {number}. Two words. Three. Four {'and more ' * (number % 9)}."],
        "regions": [{"box": [0.1, 0.1, 0.9, 0.9], "phrase": f"thing {number}"}] if number % 4 else [],
        "vqa": [{"question": "which?", "answer": str(number)}] if number % 3 else [],
    }
    return {"__key__": f"k{number:03d}", "png": picture(number), "json": json.dumps(record).encode()}


def bad_sample(number: int, reason: str) -> dict:
    files = sample(number) | BAD[reason] | {"__key__": f"{reason}{number}"}
    return {name: data for name, data in files.items() if data is not None}


def write_shard(path: Path, samples: list[dict]) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for files in samples:
            tar.write(files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of one to nine usable samples, with bad ones at begin, middle and end, and one shard with no other."""
    folder, number = tmp_path_factory.mktemp("stream"), 0
    for shard, size in enumerate(SIZES):
        samples = [sample(number + i) for i in range(size)]
        number += size
        samples.insert(0, bad_sample(shard, "no_image"))
        samples.insert(len(samples) // 2, bad_sample(shard, "undecodable_image"))
        samples += [bad_sample(shard, "no_caption"), bad_sample(shard, "json_is_not_an_object")]
        write_shard(folder / f"{shard}.tar", samples)
    return folder


def make_recipe(folder: Path, *overrides: str, name: str = "goldi_super") -> Recipe:
    settings = [
        *(f"data.train={folder}/*.tar", "data.streams=2", "data.workers=0", "data.shuffle=4", "train.batch_size=8"),
        *("model.vision.image_size=16", "data.views={global_count: 2, local_count: 1, local_size: 16}"),
    ]
    return load_recipe(SHIPPED_RECIPES / f"{name}.yaml", [*settings, *overrides], world_size=1)


def load(recipe: Recipe, rank: int = 0, ranks: int = 1, positions=None, step: int = 0):
    return make_loader(recipe, lambda _: graph_needs(recipe).data, rank, ranks, positions or {}, step)


def numbers(loaded: Loaded) -> list[int]:
    return loaded.batch.images_B3HW[:, 0, 0, 0].tolist()


def contents(parts: list[Loaded]) -> dict[int, tuple]:
    """What each image of a global batch came with, by its number in the batch. Padding differs between splits."""
    found = {}
    for batch in (part.batch for part in parts):
        views = {row: i for i, row in enumerate(batch.view_rows_b.tolist())}
        for row, index in enumerate(batch.index_B.tolist()):
            captions = {name: [trim(ids) for ids in ids_BKL[row]] for name, ids_BKL in batch.captions.items()}
            prompts = {
                (task, trim(prompts.ids_RL[i]), int(prompts.answer_start_R[i]))
                for task, prompts in batch.prompts.items()
                for i in (prompts.rows_R == row).nonzero().flatten().tolist()
            }
            pixels = [batch.images_B3HW[row]]
            if row in views:
                pixels += [batch.global_views_bG3HW[views[row]], batch.local_views_bV3HW[views[row]]]
            assert index not in found
            found[index] = (captions, prompts, [part.numpy().tobytes() for part in pixels])
    return found


def trim(ids: torch.Tensor) -> tuple[int, ...]:
    return tuple(ids[: int(ids.nonzero().max()) + 1].tolist())


def run(recipe: Recipe, ranks: int, steps: int, positions=None, step: int = 0) -> list[tuple]:
    """Contents, positions and skip counts of each global batch."""
    loaders = [load(recipe, rank, ranks, positions, step) for rank in range(ranks)]
    found = []
    for _ in range(steps):
        parts = [next(loader) for loader in loaders]
        stands = {stream: position for part in parts for stream, position in part.positions.items()}
        found.append((contents(parts), stands, sum((part.skipped for part in parts), Counter())))
    return found


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> list[tuple]:
    return run(make_recipe(folder), 1, STEPS)


# ---- the same samples at any split ------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)])
def test_ranks_and_workers_only_share_the_streams_out(folder, uninterrupted, ranks: int, workers: int) -> None:
    recipe = make_recipe(folder, f"data.workers={workers}")
    for ours, reference in zip(run(recipe, ranks, 6), uninterrupted, strict=False):
        assert set(ours[0]) == set(range(8))
        assert ours == reference


def test_micro_batches_are_parts_of_the_global_batch(folder: Path, uninterrupted: list[tuple]) -> None:
    no_contrast = ("objectives.retrieval=null", "objectives.distillation=null")
    whole, split = (make_recipe(folder, *no_contrast, f"train.accumulation={k}") for k in (1, 2))
    loader = load(split)
    for batch in islice(load(whole), 5):
        parts = [next(loader), next(loader)]
        assert sorted(part.batch.index_B.tolist() for part in parts) == [[0, 2, 1, 3], [4, 6, 5, 7]]
        rows = {int(index): row for row, index in enumerate(batch.batch.index_B)}
        for part in parts:
            at = [rows[int(index)] for index in part.batch.index_B]
            assert torch.equal(part.batch.images_B3HW, batch.batch.images_B3HW[at])
        assert parts[1].positions == batch.positions


def test_another_seed_is_another_order(folder: Path, uninterrupted: list[tuple]) -> None:
    assert run(make_recipe(folder, "train.seed=1"), 1, 1)[0][0] != uninterrupted[0][0]
    assert run(make_recipe(folder), 1, 1)[0] == uninterrupted[0]


def test_tasks_and_views_take_turns(folder: Path) -> None:
    """At share 1/8 and 8 images, one image of every batch has each task's turn (where its sample has the field)."""
    share = {f"objectives.{name}.share=0.125" for name in ("caption", "referring", "grounded", "vqa", "distillation")}
    turns = set()
    for step, loaded in enumerate(islice(load(make_recipe(folder, *share)), 8)):
        (row,) = loaded.batch.prompts["caption"].rows_R.tolist()
        turns.add((int(loaded.batch.index_B[row]) + step) % 8)
        assert len(loaded.batch.view_rows_b) == 1
        for task in ("referring", "grounded", "vqa"):
            assert len(loaded.batch.prompts[task].rows_R) + loaded.skipped[f"no_{task}"] == 1
    assert len(turns) == 1, "the turn moves on by one image each step"


# ---- positions --------------------------------------------------------------------------------------------------


def test_a_run_goes_on_exactly_from_every_position(folder: Path, uninterrupted: list[tuple]) -> None:
    """14 steps pass the ends of several shards and epochs, with bad samples around them."""
    ends = Counter(position[0] for _, positions, _ in uninterrupted for position in positions.values())
    assert len(ends) >= 3, "three epochs or more"
    for done in range(1, STEPS):
        resumed = run(make_recipe(folder), 1, min(3, STEPS - done), uninterrupted[done - 1][1], done)
        assert resumed == uninterrupted[done : done + len(resumed)], done


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 1)])
def test_a_run_goes_on_exactly_at_another_split(folder, uninterrupted, ranks: int, workers: int) -> None:
    recipe = make_recipe(folder, f"data.workers={workers}")
    for done in (1, 6, 9):
        assert run(recipe, ranks, 3, uninterrupted[done - 1][1], done) == uninterrupted[done : done + 3]


def test_positions_are_of_what_was_given_not_of_what_was_prefetched(folder: Path, uninterrupted: list[tuple]) -> None:
    (first,) = run(make_recipe(folder, "data.workers=2"), 1, 1)
    assert first[1] == uninterrupted[0][1]


@pytest.mark.parametrize("shuffle", [1, 4, 1000])
def test_an_epoch_shows_every_usable_sample_once(folder: Path, shuffle: int) -> None:
    recipe = make_recipe(folder, "train.batch_size=2", f"data.shuffle={shuffle}", name="clip")
    shown: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for loaded in load(recipe):
        for row, (_, position) in zip(numbers(loaded), sorted(loaded.positions.items()), strict=True):
            shown.setdefault(position[0], []).append(row)
        if min(position[0] for position in loaded.positions.values()) > 2:
            break
    for epoch in range(3):
        assert sorted(shown[epoch]) == list(range(sum(SIZES)))
    assert shown[0] != shown[1] != shown[2]


# ---- samples that cannot be used --------------------------------------------------------------------------------


def test_bad_samples_are_skipped_and_counted_by_reason(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(5)] + [bad_sample(i, reason) for i, reason in enumerate([*BAD] * 3)]
    write_shard(tmp_path / "0.tar", samples)
    recipe = make_recipe(tmp_path, "data.streams=1", "train.batch_size=1", name="clip")
    skipped, epochs = Counter(), 4
    for given, loaded in enumerate(load(recipe), start=1):
        epoch, place, taken = loaded.positions[0]
        skipped += loaded.skipped
        assert place == 0 and skipped.total() == epoch * len(samples) + taken - given
        if epoch == epochs:
            break
    assert set(skipped) == set(BAD)
    assert all(3 * epochs <= count <= 3 * (epochs + 1) for count in skipped.values())


def test_samples_without_a_task_s_field_are_used_and_counted(folder: Path) -> None:
    share = ("objectives.vqa.share=1", "objectives.grounded.share=1")
    others = [f"objectives.{name}=null" for name in ("retrieval", "distillation", "caption", "referring")]
    for loaded in islice(load(make_recipe(folder, *share, *others)), 6):
        shown = numbers(loaded)
        for task, without in {"vqa": 3, "grounded": 4}.items():
            rows = loaded.batch.prompts[task].rows_R.tolist()
            assert rows == [row for row, number in enumerate(shown) if number % without]
            assert loaded.skipped[f"no_{task}"] == 8 - len(rows)


def line_of(recipe: Recipe, positions=None) -> str:
    """What ends the run, within three epochs."""
    with pytest.raises(UserError) as raised:
        for _ in islice(load(recipe, positions=positions), 200):
            pass
    line = str(raised.value)
    assert "\n" not in line and "Traceback" not in line
    return line


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("reason", [*BAD, "empty"])
def test_shards_without_any_usable_sample_stop_with_the_reason(tmp_path: Path, workers: int, reason: str) -> None:
    for shard in range(4):
        write_shard(tmp_path / f"{shard}.tar", [bad_sample(i, reason) for i in range(3)] if reason in BAD else [])
    line = line_of(make_recipe(tmp_path, f"data.workers={workers}", name="clip"))
    assert line.startswith(f"data.train: no usable sample in {tmp_path}/")
    assert "and 1 more shards: " in line
    assert (f"{reason} (6)" if reason in BAD else "they are empty") in line


def test_the_top_reasons_are_named(tmp_path: Path) -> None:
    reasons = ["no_image"] * 5 + ["no_caption"] * 9 + ["undecodable_image"] * 2 + ["json_is_not_an_object"]
    write_shard(tmp_path / "0.tar", [bad_sample(i, reason) for i, reason in enumerate(reasons)])
    line = line_of(make_recipe(tmp_path, "data.streams=1", name="clip"))
    assert f"{tmp_path}/0.tar: no_caption (9), no_image (5), undecodable_image (2); " in line


def test_a_run_that_resumes_behind_the_last_usable_sample_goes_on(tmp_path: Path) -> None:
    """What is left of the epoch has none; only a whole epoch without any stops the run."""
    write_shard(tmp_path / "0.tar", [sample(1), *(bad_sample(i, "no_image") for i in range(3))])
    recipe = make_recipe(tmp_path, "data.streams=1", "train.batch_size=1", "data.shuffle=1", name="clip")
    loaded = next(load(recipe, positions={0: (5, 0, 1)}))
    assert loaded.positions == {0: (6, 0, 1)} and loaded.skipped == {"no_image": 3}


def test_one_useless_shard_among_others_of_its_stream_is_passed(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [bad_sample(0, "no_image")])
    write_shard(tmp_path / "1.tar", [])
    write_shard(tmp_path / "2.tar", [sample(1), sample(2)])
    recipe = make_recipe(tmp_path, "data.streams=1", "train.batch_size=2", name="clip")
    assert all(sorted(numbers(loaded)) == [1, 2] for loaded in islice(load(recipe), 4))


# ---- shards that cannot be read ---------------------------------------------------------------------------------


def test_a_pattern_that_matches_nothing_and_too_few_shards(folder: Path) -> None:
    with pytest.raises(UserError, match=r"matches no shard .*give a tar, a glob, or a brace pattern"):
        load(make_recipe(folder / "nowhere"))
    with pytest.raises(
        UserError, match=r"6 shards for data\.streams=8 readers; set data\.streams=6 or fewer, or write"
    ):
        load(make_recipe(folder, "data.streams=8"))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("damage", ["garbage", "cut in data", "cut in a header", "gone", "a folder"])
def test_an_unreadable_shard_is_one_line_that_names_it(tmp_path: Path, workers: int, damage: str) -> None:
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", [sample(10 * shard + i) for i in range(9)])
    broken = tmp_path / "1.tar"
    whole = broken.read_bytes()
    header = whole.index(b"k014.json") + 40
    recipe = make_recipe(tmp_path, f"data.workers={workers}", "train.batch_size=2", name="clip")
    broken.write_bytes({"garbage": whole[::-1], "cut in a header": whole[:header]}.get(damage, whole[: header + 600]))
    if damage in ("gone", "a folder"):
        recipe = make_recipe(tmp_path, f"data.workers={workers}", f"data.train={tmp_path}/{{0,1}}.tar", name="clip")
        broken.unlink()
        (tmp_path / "1.tar").mkdir()
        if damage == "gone":
            (tmp_path / "1.tar").rmdir()
            with pytest.raises(UserError, match=r"1\.tar does not exist"):
                load(recipe)
            return
    line = line_of(recipe)
    assert line.startswith("data.train: 1 of a reader's 1 shards could not be read in this epoch, more than")
    assert f"the last: {broken}: " in line and line.endswith("copy it again, or take it out of the data pattern")


def test_a_shard_that_disappears_during_training_is_reported_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for shard in range(6):
        write_shard(tmp_path / f"{shard}.tar", [sample(10 * shard + i) for i in range(4)])
    recipe = make_recipe(tmp_path, "train.batch_size=2", name="clip")
    loader = load(recipe)
    seen = [next(loader)]
    (tmp_path / "0.tar").unlink()
    seen += islice(loader, 40)
    counts = Counter(number for loaded in seen for number in numbers(loaded))
    skipped = sum((loaded.skipped for loaded in seen), Counter())
    assert max(counts[number] for number in range(4)) <= 1 and skipped["unreadable_shard"] >= 2
    assert all(counts[10 * shard + i] >= 2 for shard in range(1, 6) for i in range(4))
    assert "0.tar: not a readable tar shard (No such file or directory); copy it" in capsys.readouterr().err
    for shard in range(1, 4):
        (tmp_path / f"{shard}.tar").unlink()
    with pytest.raises(UserError, match=r"data\.train: [23] of a reader's 3 shards could not be read in this epoch"):
        list(islice(loader, 40))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "WINDOW", 20)
    for shard in range(2):
        bad = [bad_sample(i, "undecodable_image" if i % 3 else "no_caption") for i in range(6)]
        write_shard(tmp_path / f"{shard}.tar", [sample(10 * shard + i) for i in range(9)] + bad)
    recipe = make_recipe(tmp_path, f"data.workers={workers}", "train.batch_size=2", "data.bad_share=0.3", name="clip")
    line = line_of(recipe)
    assert re.fullmatch(
        r"data\.train: [78] of the last 20 samples of a reader could not be used, more than data\.bad_share=0\.3: "
        r"undecodable_image \(\d\), no_caption \(\d\); mend them, or raise data\.bad_share",
        line,
    )
    patient = make_recipe(tmp_path, f"data.workers={workers}", "train.batch_size=2", "data.bad_share=0.6", name="clip")
    assert len(list(islice(load(patient), 60))) == 60


def test_reading_in_the_training_process_leaves_its_threads_alone(folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        next(load(make_recipe(folder)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_streams_that_have_no_position_begin_at_the_start(folder: Path) -> None:
    needs = DataNeeds(images=True, captions=(CaptionRequest("raw"),))
    recipe = make_recipe(folder, "train.batch_size=2")
    whole = next(make_loader(recipe, lambda _: needs, 0, 1, {}, 0))
    partly = next(make_loader(recipe, lambda _: needs, 0, 1, {0: START}, 0))
    assert numbers(whole) == numbers(partly)
