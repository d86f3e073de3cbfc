"""What is wrong with one caption, region, question, picture; and that training agrees."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.data.prompts import TaskRequest, make_prompt
from vlp.data.views import WHOLE
from vlp.data_report.catalogue import CATALOGUE
from vlp.data_report.printable import printable
from vlp.data_report.problems import (
    box_problem,
    caption_problems,
    picture_problems,
    picture_size,
    question_problem,
    region_problem,
)
from vlp.settings import DataSettings


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a cat", []),
        ("two lines\nof\ttext", []),
        ("", ["caption_empty"]),
        (" \n ", ["caption_empty"]),
        (None, ["caption_not_text"]),
        (3, ["caption_not_text"]),
        ({"text": "a cat"}, ["caption_not_text"]),
        ("a\0cat", ["caption_control_characters"]),
        ("a \x1b[31mcat", ["caption_control_characters"]),
        ("caf\ufffd", ["caption_not_utf8"]),
        (json.loads('"caf\\ud800"'), ["caption_not_utf8"]),
        ("a" * 10_000, []),
        ("a" * 10_001, ["caption_very_long"]),
        ("\0" * 10_001, ["caption_very_long", "caption_control_characters"]),
    ],
)
def test_captions(text, problems: list[str]) -> None:
    assert caption_problems(text) == problems


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([0, 0, 1, 1], None),
        ([0.1, 0.2, 0.5, 0.6], None),
        (None, "box_not_four_numbers"),
        ("0.1 0.2 0.5 0.6", "box_not_four_numbers"),
        ([0.1, 0.2, 0.5], "box_not_four_numbers"),
        ([0.1, 0.2, 0.5, "0.6"], "box_not_four_numbers"),
        ([False, 0, True, 1], "box_not_four_numbers"),
        ([0.1, 0.2, 0.5, math.nan], "box_not_finite"),
        ([0.1, 0.2, math.inf, 0.6], "box_not_finite"),
        ([12, 20, 300, 240], "box_in_pixels"),
        ([0, 0, 10**400, 1], "box_in_pixels"),
        ([0.1, 0.2, 0.5, 1.01], "box_outside"),
        ([-0.01, 0.2, 0.5, 0.6], "box_outside"),
        ([0.5, 0.2, 0.1, 0.6], "box_reversed"),
        ([0.1, 0.6, 0.5, 0.2], "box_reversed"),
        ([0.1, 0.2, 0.1, 0.6], "box_without_area"),
        ([0.1, 0.2, 0.13, 0.6], "box_tiny"),
    ],
)
def test_boxes(box, problem: str | None) -> None:
    assert box_problem(box, size=32) == problem
    assert region_problem({"phrase": "a cat", "box": box}, DataSettings(), 32) == problem


@pytest.mark.parametrize(
    ("region", "problem"),
    [
        ({"score": 0.3}, None),
        ({"score": 0.29}, "box_low_score"),
        ({"score": "high"}, "score_not_number"),
        ({"score": math.nan}, "score_not_number"),
        ({"phrase": " "}, "region_without_phrase"),
        ({"phrase": None}, "region_without_phrase"),
    ],
)
def test_regions(region: dict, problem: str | None) -> None:
    assert region_problem({"phrase": "a cat", "box": [0, 0, 1, 1]} | region, DataSettings(), 32) == problem
    assert region_problem([0, 0, 1, 1], DataSettings(), 32) == "region_not_object"


numbers = st.one_of(
    st.floats(0, 1), st.floats(), st.integers(-2, 2), st.sampled_from([0.25, 0.75, 640]), st.booleans(), st.none()
)
halves = st.floats(0, 0.5)
boxes = st.one_of(
    st.lists(numbers, min_size=3, max_size=5),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.builds(lambda left, top, width, height: [left, top, left + width, top + height], *[halves] * 4),
)
regions = st.none() | st.fixed_dictionaries(
    {"phrase": st.sampled_from(["a cat", "a dog", "", None, 3])}, optional={"score": numbers, "box": boxes}
)


@given(regions)
def test_a_region_without_a_problem_is_one_that_training_reads(region) -> None:
    data, rng = DataSettings(), np.random.default_rng(0)
    prompt = make_prompt(TaskRequest("referring"), {}, {"regions": [region]}, WHOLE, 32, data, rng)
    assert (region_problem(region, data, 32) in (None, "box_tiny")) == (prompt is not None)


@given(
    st.dictionaries(
        st.sampled_from(["question", "answer"]), st.none() | st.sampled_from(["", " ", "what?", "3"]) | st.integers()
    )
)
def test_a_question_without_a_problem_is_one_that_training_reads(pair: dict) -> None:
    prompt = make_prompt(TaskRequest("vqa"), {}, {"vqa": [pair]}, WHOLE, 32, DataSettings(), np.random.default_rng(0))
    assert (question_problem(pair) is None) == (prompt is not None)


def test_questions() -> None:
    assert question_problem({"question": "what?", "answer": "a cat"}) is None
    assert question_problem({"question": "what?"}) == "question_without_answer"
    assert question_problem({"question": "what?", "answer": " "}) == "question_without_answer"
    assert question_problem({"question": "how many?", "answer": 3}) == "answer_not_text"
    assert question_problem({"question": "", "answer": "a cat"}) == "question_empty"
    assert question_problem("what? a cat") == "question_not_object"


def test_pictures() -> None:
    assert picture_problems(32, 32, 32) == picture_problems(96, 32, 32) == []
    assert picture_problems(31, 64, 32) == ["picture_small"]
    assert picture_problems(97, 32, 32) == picture_problems(32, 97, 32) == ["picture_extreme_aspect"]
    assert picture_size(b"no picture") is None and picture_size(b"") is None


def test_every_problem_says_what_to_do() -> None:
    assert all(problem.what and problem.mend for problem in CATALOGUE.values())


@given(st.text(st.characters(codec=None)))
def test_printable_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in shown)


def test_printable_text_keeps_other_text() -> None:
    assert printable("una foto de un señor 😀 «да»") == "una foto de un señor 😀 «да»"
    assert printable("a\0\x1b[2J\nb\u202ec") == "a\\x00\\x1b[2J\\nb\\u202ec"
    assert printable("abcdef", 4) == "abc…"
