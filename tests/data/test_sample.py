"""One raw sample to a `Sample`, samples to a `Batch`, batches joined."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from vlp.data.batch import Batch, DataNeeds, Prompts, TaskRequest, join
from vlp.data.captions import CaptionRequest
from vlp.data.sample import collate, has_turn, make_sample
from vlp.data.shards import BadSample
from vlp.data.tokens import END, START
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe

SIZE, CONTEXT = 32, 77
ALL = DataNeeds(
    images=True,
    captions=(CaptionRequest("diverse", 3), CaptionRequest("long")),
    tasks=tuple(TaskRequest(task, 0.5) for task in ("caption", "referring", "grounded", "vqa")),
    view_share=0.5,
)


def make_recipe(*overrides: str) -> Recipe:
    sizes = (f"model.vision.image_size={SIZE}", "data.views={local_count: 3, local_size: 16, flip: 0.5}")
    return load_recipe(SHIPPED_RECIPES / "goldi_super.yaml", [*sizes, *overrides], world_size=1)


RECIPE = make_recipe()


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def raw_sample(number: int = 0, **annotations) -> dict:
    """A picture of one grey level, and annotations of growing length."""
    record = {
        "raw": f"number {number}",
        "short": [f"short {number} " * (1 + number % 3)],
        "long": [f"long {number}. " * (1 + 2 * number)],
        "regions": [{"box": [0.2, 0.2, 0.8, 0.8], "phrase": f"thing {number}"}],
        "vqa": [{"question": "which?", "answer": f"{number} " * (1 + number % 4)}],
    }
    picture = Image.new("RGB", (60, 40), (number, number, number))
    return {"__key__": str(number), "png": png(picture), "json": json.dumps(record | annotations).encode()}


def sample(raw: dict, needs: DataNeeds = ALL, turn: int = 0, recipe: Recipe = RECIPE, seed: int = 0):
    return make_sample(raw, needs, recipe, turn, np.random.default_rng(seed))


# ---- one sample -------------------------------------------------------------------------------------------------


def test_only_what_is_read_is_made() -> None:
    found = sample(raw_sample(), DataNeeds(images=True, captions=(CaptionRequest("short"),)))
    assert found.image.shape == (3, SIZE, SIZE) and found.image.dtype == np.uint8
    assert list(found.captions) == ["short"] and found.captions["short"][0][0] == START
    assert not found.prompts and found.views is None and not found.missing


def test_views_have_their_sizes_and_counts() -> None:
    global_views, local_views = sample(raw_sample(), turn=1).views
    assert [view.shape for view in global_views] == [(3, SIZE, SIZE)] * 2
    assert [view.shape for view in local_views] == [(3, 16, 16)] * 3
    assert sample(raw_sample(), turn=0).views is None


def test_draws_depend_on_the_generator_alone() -> None:
    raw = raw_sample(9)
    first, again, other = (sample(raw, turn=1, seed=seed) for seed in (3, 3, 4))
    assert first.captions == again.captions and first.prompts == again.prompts
    assert first.captions != other.captions


@pytest.mark.parametrize("seed", range(12))
def test_the_box_in_the_prompt_is_where_the_object_is_in_the_view(seed: int) -> None:
    picture = Image.new("RGB", (80, 60))
    picture.paste((255, 255, 255), (24, 21, 56, 42))
    box = [24 / 80, 21 / 60, 56 / 80, 42 / 60]
    raw = raw_sample(regions=[{"box": box, "phrase": "white"}]) | {"png": png(picture)}
    recipe = make_recipe("data.crop_scale=[0.5, 1]", "model.vision.image_size=192")
    needs = DataNeeds(images=True, tasks=(TaskRequest("referring"),))
    found = sample(raw, needs, recipe=recipe, seed=seed)
    ids, start, _ = found.prompts["referring"]
    assert ids[-1] == END
    told = json.loads(SimpleTokenizer().decode(ids[start:-1]).replace(" ", ""))
    y, x = np.nonzero(found.image[0] > 127)
    assert np.abs(np.array(told) - [x.min(), y.min(), x.max() + 1, y.max() + 1]).max() <= 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"png": b"no picture"}, "undecodable_image"),
        ({"png": png(Image.new("RGB", (64, 64)))[:60]}, "undecodable_image"),
        ({"png": None}, "no_image"),
        ({"json": b"[1, 2]"}, "json_is_not_an_object"),
        ({"json": b"{"}, "unreadable_json"),
        ({"json": b"[" * 100_000}, "unreadable_json"),
        ({"json": b"\xff\xfe\xfa"}, "unreadable_json"),
        ({"json": None}, "no_caption"),
        ({"json": b'{"long": 5, "short": {"a": "b"}, "raw": null}'}, "no_caption"),
    ],
)
def test_a_bad_sample_has_a_reason(change: dict, reason: str) -> None:
    raw = {key: value for key, value in (raw_sample() | change).items() if value is not None}
    with pytest.raises(BadSample, match=f"^{reason}$"):
        sample(raw)


def test_a_caption_file_serves_where_the_json_has_no_caption() -> None:
    raw = raw_sample() | {"json": b"{}", "txt": "alt text of \xff".encode("latin-1")}
    needs = DataNeeds(images=True, captions=(CaptionRequest("raw"),))
    assert len(sample(raw, needs).captions["raw"][0]) > 4


def test_a_task_without_its_field_is_missing_not_bad() -> None:
    needs = DataNeeds(images=True, tasks=tuple(TaskRequest(task) for task in ("caption", "referring", "vqa")))
    found = sample(raw_sample(regions=[], vqa=[{"question": 5}]), needs)
    assert found.missing == ["referring", "vqa"] and list(found.prompts) == ["caption"]


# ---- whose turn it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.125, 0.0625, 0.1, 0.3, 1 / 3, 0.7])
@pytest.mark.parametrize("start", [0, 1, 7, 1000, 123_456_789])
def test_shares_are_even_in_every_window(share: float, start: int) -> None:
    turns = [has_turn(turn, share) for turn in range(start, start + 1000)]
    for length in (1, 16, 48, 96, 960):
        counts = [sum(turns[first : first + length]) for first in range(0, 1000 - length + 1, 7)]
        assert max(abs(count - length * share) for count in counts) <= 1
        if share * 96 % 1 == 0 and length % 96 == 0 and start < 10**6:
            assert set(counts) == {length * share}, "a batch of any start has exactly its share"


# ---- batches ----------------------------------------------------------------------------------------------------


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (Batch, Prompts)):
        return same(vars(first), vars(second))
    return first == second


SAMPLES = [sample(raw_sample(number, **({"vqa": []} if number % 3 else {})), turn=number) for number in range(10)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.sets(st.integers(1, 8)))
def test_joined_parts_equal_the_whole(chosen: list[int], cuts: set[int]) -> None:
    samples, index = [SAMPLES[i] for i in chosen], [10 * i for i in range(len(chosen))]
    ends = [0, *sorted(cut for cut in cuts if cut < len(chosen)), len(chosen)]
    parts = [collate(samples[a:b], index[a:b], ALL, RECIPE) for a, b in pairwise(ends)]
    assert same(join(parts), collate(samples, index, ALL, RECIPE))


def test_a_batch_holds_each_sample_in_its_row() -> None:
    batch = collate(SAMPLES, list(range(100, 110)), ALL, RECIPE)
    assert len(batch) == 10 and batch.index_B.tolist() == list(range(100, 110))
    assert batch.images_B3HW.dtype == torch.uint8
    assert batch.images_B3HW[:, 0, 0, 0].tolist() == list(range(10))
    assert batch.captions["diversex3"].shape[:2] == (10, 3)
    for row, found in enumerate(SAMPLES):
        for name, captions in found.captions.items():
            for ids_L, ids in zip(batch.captions[name][row], captions, strict=True):
                assert ids_L[: len(ids)].tolist() == ids and not ids_L[len(ids) :].any()
    for task, prompts in batch.prompts.items():
        assert prompts.rows_R.tolist() == [row for row, found in enumerate(SAMPLES) if task in found.prompts]
        for ids_L, start, row in zip(prompts.ids_RL, prompts.answer_start_R, prompts.rows_R, strict=True):
            ids, answer, _ = SAMPLES[row].prompts[task]
            assert ids_L[: len(ids)].tolist() == ids and start == answer
    assert batch.view_rows_b.tolist() == [1, 3, 5, 7, 9]
    assert batch.global_views_bG3HW[:, :, 0, 0, 0].tolist() == [[n, n] for n in (1, 3, 5, 7, 9)]
    assert batch.local_views_bV3HW.shape == (5, 3, 3, 16, 16)
    assert same(batch.to(torch.device("cpu")), batch)


def test_a_batch_in_which_nothing_has_a_turn() -> None:
    batch = collate(SAMPLES[:1], [0], ALL, RECIPE)
    assert batch.global_views_bG3HW.shape == (0, 2, 3, SIZE, SIZE)
    assert batch.prompts["caption"].ids_RL.shape[0] == 0 and batch.view_rows_b.dtype == torch.int64


def test_needs_are_joined_without_repetition() -> None:
    one, other = DataNeeds(captions=(CaptionRequest("short"),)), DataNeeds(images=True, view_share=0.25)
    assert (one | other | one) == DataNeeds(True, (CaptionRequest("short"),), (), 0.25)
