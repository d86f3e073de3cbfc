"""Which caption is read: fields, sentences, and FLAIR's draws as distributions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlp.data.captions import LONGEST, CaptionRequest, diverse_caption, read_captions, sample_captions, split_sentences
from vlp.data.layouts import LAYOUTS
from vlp.settings import DataSettings, FieldMap

DRAWS = 20_000


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog. A cat.", ["A dog", "A cat"]),
        ("A dog.\nA cat\n\n", ["A dog", "A cat"]),
        ("A dog.</s>A cat.</s>", ["A dog", "A cat"]),
        ("A dog</s></s> . \n A cat .", ["A dog", "A cat"]),
        ("3.5 metres, seen on example.com. Far away", ["3.5 metres, seen on example.com", "Far away"]),
        ("And then... nothing", ["And then", "nothing"]),
        ("no full stop", ["no full stop"]),
        ("a dog on a lawn . a cat .", ["a dog on a lawn", "a cat"]),
        (
            "Mr. Smith waves a U.S. flag of 3.5 metres. It is 5 p.m. in St. Louis. Fig. 2 is e.g. a dog. Is it? Yes!",
            [
                "Mr. Smith waves a U.S. flag of 3.5 metres",
                "It is 5 p.m. in St. Louis",
                "Fig. 2 is e.g. a dog",
                "Is it?",
                "Yes!",
            ],
        ),
        ("a small dog. the U.S. team wins. lower case", ["a small dog", "the U.S. team wins", "lower case"]),
        ("", []),
        (" . \n </s> .", []),
    ],
)
def test_sentences_end_at_newlines_end_marks_and_full_stops(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text("ab. \n") | st.text())
def test_no_sentence_is_empty_and_no_letter_is_lost(text: str) -> None:
    sentences = split_sentences(text)
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
    if "</s>" not in text:
        kept = "".join("".join(sentences).split()).replace(".", "")
        assert kept == "".join(text.split()).replace(".", "")


def test_fields_are_strings_or_lists_and_anything_else_is_none() -> None:
    fields = FieldMap(raw="caption", short=["a", "b", "missing"], long=None)
    annotations = {"caption": " alt ", "a": ["one", " ", 5, None, "two"], "b": "three", "long": "not asked for"}
    expected = {"raw": ["alt"], "short": ["one", "two", "three"], "long": []}
    assert read_captions(annotations, fields) == expected
    for wrong in (5, 1.5, True, None, {"one": "two"}, [["nested"]], ""):
        assert read_captions({"raw": wrong}, FieldMap())["raw"] == []


def test_control_characters_and_megabytes_are_no_caption() -> None:
    record = {"raw": "a\x00dog\x07 \x1b[0m", "short": ["\x00\x01", "b" * 1_000_000], "long": "one\ntwo\tthree"}
    found = read_captions(record, FieldMap())
    assert found == {"raw": ["a dog   [0m"], "short": ["b" * LONGEST], "long": ["one\ntwo\tthree"]}


LAYOUT_SAMPLES = {
    "img2dataset": ({"txt": "alt", "caption": "alt", "url": "u"}, {"raw": ["alt"], "short": [], "long": []}),
    "dreamlip": (
        {
            "raw_caption": "alt", "shortIB_captions": "s1", "longIB_captions": "l1. l1", "shortSV_captions": "s2",
            "longSV_captions": "l2", "shortLLA_captions": "s3", "longLLA_captions": "l3", "raw": "not this",
        },
        {"raw": ["alt"], "short": ["s1", "s2", "s3"], "long": ["l1. l1", "l2", "l3"]},
    ),
    "recap_datacomp": ({"org_caption": "alt", "re_caption": "l1"}, {"raw": ["alt"], "short": [], "long": ["l1"]}),
    "pixelprose": ({"original_caption": "alt", "vlm_caption": "l1"}, {"raw": ["alt"], "short": [], "long": ["l1"]}),
    "plain": ({"caption": "alt", "short": ["s"], "long": "l"}, {"raw": ["alt"], "short": ["s"], "long": ["l"]}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_by_name(layout: str) -> None:
    annotations, captions = LAYOUT_SAMPLES[layout]
    fields = DataSettings(fields=layout).fields
    assert read_captions(annotations, fields) == captions
    assert (fields.regions, fields.vqa) == ("regions", "vqa")
    with pytest.raises(ValidationError, match=rf"'{layout}x' is no layout; allowed are .*; did you mean '{layout}'\?"):
        DataSettings(fields=f"{layout}x")


CAPTIONS = {"raw": ["r"], "short": ["s1", "s2", "s3"], "long": ["l1. l2. l3", "l4. l5"]}


def draw(kind: str, count: int = 1, captions: dict = CAPTIONS, seed: int = 0) -> list[str]:
    return sample_captions(captions, CaptionRequest(kind, count), np.random.default_rng(seed))


def shares(found: list[str]) -> dict[str, float]:
    return {text: count / len(found) for text, count in Counter(found).items()}


@pytest.mark.parametrize(
    ("kind", "of"), [("raw", ["r"]), ("short", CAPTIONS["short"]), ("any", ["r", "s1", "s2", "s3", *CAPTIONS["long"]])]
)
def test_a_kind_draws_its_captions_uniformly(kind: str, of: list[str]) -> None:
    rng = np.random.default_rng(0)
    found = shares([sample_captions(CAPTIONS, CaptionRequest(kind), rng)[0] for _ in range(DRAWS)])
    assert found == pytest.approx(dict.fromkeys(of, 1 / len(of)), abs=0.015)


def test_several_captions_are_different_ones_while_there_are_enough() -> None:
    assert all(sorted(draw("short", 3, seed=seed)) == ["s1", "s2", "s3"] for seed in range(20))
    assert all(len(set(draw("short", 2, seed=seed))) == 2 for seed in range(20))
    repeated = draw("short", 8)
    assert len(repeated) == 8 and set(repeated) <= set(CAPTIONS["short"])


def test_a_sample_without_the_kind_gives_none() -> None:
    empty = {"raw": [], "short": [], "long": ["."]}
    assert draw("short", captions=empty) == draw("diverse", 2, captions=empty) == []
    assert draw("any", captions=empty) == ["."]


def test_names_tell_requests_apart() -> None:
    assert [CaptionRequest("long").name, CaptionRequest("long", 3).name] == ["long", "longx3"]
    assert CaptionRequest("diverse", 2).fields == CaptionRequest("any").fields == ("raw", "short", "long")


# ---- FLAIR's diverse sampling -----------------------------------------------------------------------------------

SENTENCES = list("abcde")


def diverse(sentences: list[str]) -> list[list[str]]:
    rng = np.random.default_rng(1)
    return [diverse_caption(sentences, rng).split(". ") for _ in range(DRAWS)]


def test_one_to_three_sentences_are_equally_likely() -> None:
    lengths = Counter(len(part) for part in diverse(SENTENCES))
    assert {m: count / DRAWS for m, count in lengths.items()} == pytest.approx(
        dict.fromkeys((1, 2, 3), 1 / 3), abs=0.015
    )


def test_a_single_sentence_is_any_of_them() -> None:
    single = shares([part[0] for part in diverse(SENTENCES) if len(part) == 1])
    assert single == pytest.approx(dict.fromkeys(SENTENCES, 1 / 5), abs=0.02)


@pytest.mark.parametrize("m", [2, 3])
def test_half_of_the_longer_ones_are_consecutive_and_never_start_last(m: int) -> None:
    """A run of m starts in [0, n-m): as consecutive draw with (1/2) / (n-m), as a random draw with (1/2) / P(n, m)."""
    n = len(SENTENCES)
    found = shares(["".join(part) for part in diverse(SENTENCES) if len(part) == m])
    orders = np.prod(np.arange(n - m + 1, n + 1))
    assert len(found) == orders, "random draws come in any order, without repetition"
    for start in range(n - m + 1):
        expected = 0.5 / orders + (0.5 / (n - m) if start < n - m else 0)
        assert found["".join(SENTENCES[start : start + m])] == pytest.approx(expected, abs=0.02)
    assert found["ca"[:2] if m == 2 else "cab"] == pytest.approx(0.5 / orders, abs=0.01)


def test_few_sentences_come_whole() -> None:
    assert {tuple(part) for part in diverse(["a"])} == {("a",)}
    found = shares(["".join(part) for part in diverse(["a", "b"])])
    assert found == pytest.approx({"ab": 2 / 3, "a": 1 / 6, "b": 1 / 6}, abs=0.015)


def test_diverse_draws_from_all_kinds() -> None:
    drawn = draw("diverse", 500)
    assert len(drawn) == 500
    seen = {sentence for text in drawn for sentence in text.split(". ")}
    assert seen == {"r", "s1", "s2", "s3", "l1", "l2", "l3", "l4", "l5"}


# ---- mixed, sentences, passages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_mixed_caption_is_long_with_its_probability(share: float) -> None:
    rng, request = np.random.default_rng(0), CaptionRequest("mixed", 4, share)
    found = shares([text for _ in range(DRAWS // 4) for text in sample_captions(CAPTIONS, request, rng)])
    expected = {text: share / 2 for text in CAPTIONS["long"]} | {text: (1 - share) / 3 for text in CAPTIONS["short"]}
    assert found == pytest.approx({text: part for text, part in expected.items() if part}, abs=0.015)
    assert request.fields == ("short", "long")
    assert request.name == f"mixed{share:g}x4"


texts = st.lists(st.text("abc .\n").map(str.strip).filter(bool), max_size=4)
fields = st.fixed_dictionaries({"raw": texts, "short": texts, "long": texts})
seeds = st.integers(0, 2**32)


@given(fields, st.floats(0, 1), st.integers(1, 5), seeds)
def test_a_mixed_caption_is_of_the_kind_that_is_there(captions: dict, share: float, count: int, seed: int) -> None:
    drawn = sample_captions(captions, CaptionRequest("mixed", count, share), np.random.default_rng(seed))
    kinds = captions["short"] + captions["long"]
    assert len(drawn) == (count if kinds else 0)
    assert set(drawn) <= set(kinds)
    for kind, always in (("short", 0.0), ("long", 1.0)):
        drawn = sample_captions(captions, CaptionRequest("mixed", count, always), np.random.default_rng(seed))
        assert set(drawn) <= set(captions[kind] or kinds)


@given(fields, st.integers(1, 9), seeds)
def test_sentences_are_whole_and_different_while_there_are_enough(captions: dict, count: int, seed: int) -> None:
    whole = [sentence for kind in captions.values() for text in kind for sentence in split_sentences(text)]
    drawn = draw("sentence", count, captions, seed)
    assert len(drawn) == (count if whole else 0)
    assert not Counter(drawn) - Counter(whole) or count > len(whole)
    assert set(drawn) <= set(whole)


@given(st.integers(1, 8), st.integers(1, 4), seeds)
def test_a_passage_is_one_to_five_different_sentences(sentences: int, count: int, seed: int) -> None:
    captions = {"raw": [], "short": ["s0"], "long": [". ".join(f"s{i}" for i in range(1, sentences))]}
    drawn = draw("passage", count, captions, seed)
    assert len(drawn) == count
    for text in drawn:
        parts = text.split(". ")
        assert 1 <= len(parts) <= min(5, sentences)
        assert len(set(parts)) == len(parts)
        assert set(parts) <= {f"s{i}" for i in range(sentences)}
    assert draw("passage", count, {"raw": [], "short": [], "long": ["."]}, seed) == []


def test_passages_of_every_length_and_order_are_equally_likely() -> None:
    drawn = [text.split(". ") for text in draw("passage", DRAWS, {"raw": [], "short": list("abcdef"), "long": []})]
    lengths = Counter(len(part) for part in drawn)
    assert {m: count / DRAWS for m, count in lengths.items()} == pytest.approx(
        dict.fromkeys(range(1, 6), 1 / 5), abs=0.015
    )
    pairs = shares(["".join(part) for part in drawn if len(part) == 2])
    assert len(pairs) == 30
    assert max(pairs.values()) < 2 / 30
