"""Prompts and answers of the decoder's tasks: wording (C19), boxes (C20), thresholds (C25), one pair each (C26)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data.prompts import TaskRequest, box_text, encode_prompt, make_prompt
from vlp.data.tokens import END, START, encode
from vlp.data.views import WHOLE, Crop
from vlp.settings import DataSettings, FieldMap

CAPTIONS = {"raw": ["raw"], "short": ["one", "two", "three"], "long": ["long"]}
REGION = {"box": [0.25, 0.5, 0.75, 1], "phrase": "large cat", "caption": "a large cat", "score": 0.9}
PAIR = {"question": "How many cats?", "answer": "two"}


def prompt(task: str, annotations=None, captions=CAPTIONS, crop=WHOLE, seed: int = 0, wording=None, **settings):
    request, rng = TaskRequest(task, **(wording or {})), np.random.default_rng(seed)
    return make_prompt(request, captions, annotations or {}, crop, 224, DataSettings(**settings), rng)


def test_wording() -> None:
    annotations = {"regions": [REGION], "vqa": [PAIR]}
    assert prompt("referring", annotations) == ("OBGR large cat, box is", "[56, 112, 168, 223]")
    assert prompt("grounded", annotations) == ("OBGR [56, 112, 168, 223], grounded caption is", "large cat")
    assert prompt("vqa", annotations) == ("VQA How many cats?, answer is", "two")
    answers = Counter(prompt("caption", seed=seed) for seed in range(60))
    assert set(answers) == {("Caption:", text) for text in CAPTIONS["short"]} and min(answers.values()) > 10


def test_wording_of_a_recipe() -> None:
    """LocCa's: the answer holds both parts. Braces are doubled as in any template; an empty prompt is one."""
    annotations = {"regions": [REGION], "vqa": [PAIR]}
    locca = {"prompt": "ARef:", "answer": "{phrase} : {box}"}
    assert prompt("referring", annotations, wording=locca) == ("ARef:", "large cat : [56, 112, 168, 223]")
    braces = {"prompt": "{{{question}}}", "answer": "{answer}, {answer}"}
    assert prompt("vqa", annotations, wording=braces) == ("{How many cats?}", "two, two")
    assert prompt("caption", captions=CAPTIONS | {"short": ["{box}"]}, wording={"prompt": ""}) == ("", "{box}")


@pytest.mark.parametrize("kind", ["raw", "short", "long", "any"])
def test_a_caption_prompt_draws_from_its_kind(kind: str) -> None:
    drawn = {prompt("caption", seed=seed, wording={"captions": kind})[1] for seed in range(60)}
    assert drawn == {text for field, texts in CAPTIONS.items() for text in texts if kind in (field, "any")}
    assert TaskRequest("caption", captions=kind).field == ("long" if kind == "any" else kind)


def test_a_request_is_named_by_its_task_and_unusual_words() -> None:
    assert TaskRequest("vqa").name == TaskRequest("vqa", 0.5, "VQA {question}, answer is").name == "vqa"
    short = TaskRequest("vqa", prompt="Q: {question}")
    assert short.templates == ("Q: {question}", "{answer}")
    assert short.name == "vqa 'Q: {question}' '{answer}'"
    assert [TaskRequest(task).field for task in ("referring", "grounded", "vqa")] == ["regions", "regions", "vqa"]


def test_boxes_are_whole_pixels_of_the_view() -> None:
    assert box_text((0, 0, 1, 1), 224) == "[0, 0, 223, 223]"
    assert box_text((0.0, 1e-9, 0.5, 0.999), 64) == "[0, 0, 32, 63]"
    assert box_text((-1e-12, 0, 1 + 1e-12, 1), 64) == "[0, 0, 63, 63]"
    assert len(encode("223")) == 3, "one token per digit"


def test_boxes_are_those_of_the_crop() -> None:
    crop = Crop(0.25, 0.5, 0.75, 1)
    assert prompt("referring", {"regions": [REGION]}, crop=crop) == ("OBGR large cat, box is", "[0, 0, 223, 223]")
    assert prompt("referring", {"regions": [REGION]}, crop=Crop(0, 0, 1, 0.6)) is None


def test_one_of_the_usable_regions_is_drawn_uniformly() -> None:
    regions = [REGION | {"phrase": name} for name in "ab"] + [
        REGION | {"phrase": "low", "score": 0.29},
        {"phrase": "x"},
    ]
    drawn = Counter(prompt("grounded", {"regions": regions}, seed=seed)[1] for seed in range(400))
    assert drawn.keys() == {"a", "b"} and abs(drawn["a"] - 200) < 50
    assert prompt("grounded", {"regions": regions[2:]}) is None
    assert prompt("grounded", {"regions": regions[2:]}, box_score=0.2)[1] == "low"
    unscored = {key: value for key, value in REGION.items() if key != "score"}
    assert prompt("grounded", {"regions": [unscored]})[1] == "large cat"


def test_one_of_the_whole_pairs_is_drawn() -> None:
    pairs = [{"question": "a?", "answer": "1"}, {"question": "b?", "answer": "2"}, {"question": "c?"}, {"answer": "4"}]
    assert {prompt("vqa", {"vqa": pairs}, seed=seed)[1] for seed in range(40)} == {"1", "2"}


@pytest.mark.parametrize("task", ["referring", "grounded", "vqa"])
def test_a_sample_without_the_field_has_no_prompt(task: str) -> None:
    assert prompt(task) is None
    assert prompt(task, {"regions": [], "vqa": []}) is None
    assert prompt(task, {"regions": [REGION], "vqa": [PAIR]}, fields=FieldMap(regions=None, vqa=None)) is None


def test_a_sample_without_short_captions_has_no_caption_prompt() -> None:
    assert prompt("caption", captions=CAPTIONS | {"short": []}) is None


@pytest.mark.parametrize("task", ["referring", "vqa"])
def test_fields_of_other_names_are_read(task: str) -> None:
    fields = FieldMap(regions="boxes", vqa="qa")
    assert prompt(task, {"boxes": [REGION], "qa": [PAIR]}, fields=fields) is not None


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("")
keys = st.sampled_from(["box", "phrase", "score", "caption", "question", "answer"])
items = st.dictionaries(keys, scalars | st.lists(scalars, max_size=5) | st.just([0.1, 0.1, 0.5, 0.5]))


@given(st.sampled_from(["regions", "vqa"]), scalars | items | st.lists(items | scalars | st.lists(scalars), max_size=4))
@settings(max_examples=300, deadline=None)
def test_wild_annotations_give_two_texts_or_nothing(field: str, value) -> None:
    for task in ("referring", "grounded", "vqa"):
        found = prompt(task, {field: value})
        assert found is None or all(isinstance(text, str) and text.strip() for text in found)


def test_ids_and_where_the_answer_starts() -> None:
    ids, start = encode_prompt("Caption:", "a dog", 77)
    assert ids == [START, *encode("Caption:"), *encode("a dog"), END]
    assert ids[start:] == [*encode("a dog"), END]
    cut, start = encode_prompt("Caption:", "dog " * 100, 20)
    assert len(cut) == 20 and set(cut[start:]) == set(encode("dog"))
