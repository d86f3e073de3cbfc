"""Keyword co-occurrence against a search of every caption, and SuperCLIP's groups as its appendix has them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.annotation.keywords import Combination, appendix, count_combinations, read_combinations
from vlp.errors import UserError

CAPTIONS = [
    "Two animals playing outside on a tree branch.",
    "an animal in a TREE",
    "animal-tree",
    "animals, trees",
    "a category of cars",
    "The cat's car (grey)",
    "orange cat. orange car! orange grey",
    "herd of sheep on a hillside",
    "a herd of sheep: on the hill",
    "man fixing his tie",
    "man with a tie",
    "the cat looked at the screen",
    "the cat is looking at the screen",
    "",
]


def test_the_appendix_counts_whole_listed_words_of_every_group() -> None:
    combinations = appendix()
    counts = dict(zip((c.name for c in combinations), count_combinations(CAPTIONS, combinations), strict=True))
    assert {name: count for name, count in counts.items() if count} == {
        "animal(s) + tree": 3,  # "trees" is not listed
        "animal(s) + tree + play(ing)": 1,
        "cat + car": 2,  # "category" and "cars" are other words
        "cat + car + orange/grey": 2,
        "sheep + hill": 1,
        "sheep + hill + herd": 1,
        "man + tie": 2,
        "man + tie + fix(es/ing)": 1,
        "cat + screen": 2,
        "cat + screen + watch/look(ing)": 1,
    }


def test_the_appendix_has_the_paper_s_counts() -> None:
    combinations = appendix()
    assert [c.paper for c in combinations] == [367, 2, 216, 6, 58, 3, 32, 1, 1300, 59, 68, 1, 273, 0, 38, 2]
    assert [c.table for c in combinations] == [table for table in "1234" for _ in range(4)]
    assert all(more.groups[:2] == pair.groups for pair, more in zip(combinations[::2], combinations[1::2], strict=True))
    assert read_combinations("appendix") == combinations


words = st.sampled_from(["dog", "dogs", "ball", "Red", "été", "x1", "under_score"])
captions = st.lists(st.lists(words | st.text(max_size=3), max_size=6).map(" ".join), max_size=8)
groups = st.lists(st.frozensets(words.map(str.lower), min_size=1, max_size=3), min_size=1, max_size=3).map(tuple)


@given(captions, st.lists(groups, min_size=1, max_size=4))
def test_counts_are_those_of_a_search_word_by_word(captions: list[str], wanted: list[tuple]) -> None:
    combinations = [Combination(str(number), groups) for number, groups in enumerate(wanted)]
    expected = [
        sum(
            all(any(re.search(rf"\b{word}\b", caption.lower()) for word in group) for group in combination.groups)
            for caption in captions
        )
        for combination in combinations
    ]
    assert count_combinations(captions, combinations).tolist() == expected


def test_no_captions_and_no_combinations() -> None:
    assert count_combinations([], appendix()).tolist() == [0] * 16
    assert count_combinations(["a dog"], []).tolist() == []


# ---- files ------------------------------------------------------------------------------------------------------


def test_groups_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text("dog + ball: [[Dog, dogs], ball]\n'on': [['on']]\n2024: [['2024', été]]\n")
    assert read_combinations(str(path)) == [
        Combination("dog + ball", (frozenset({"dog", "dogs"}), frozenset({"ball"}))),
        Combination("on", (frozenset({"on"}),)),
        Combination("2024", (frozenset({"2024", "été"}),)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names with groups of words belong there"),
        ("[dog]", "names with groups of words belong there"),
        ("a: dog", "a: a list of groups of words belongs there"),
        ("a: []", "a: a list of groups of words belongs there"),
        ("a: [[]]", r"a: \[\] is no word"),
        ("a: [[dog, on]]", "a: True is no word.*quote them"),
        ("a: [[5]]", "a: 5 is no word.*quote them"),
        ("a: [[fire hydrant]]", "a: 'fire hydrant' is no word"),
        ("a: [{b: c}]", "a: .* is no word"),
        ("a: [b", "cannot be read"),
    ],
)
def test_what_is_no_groups_of_words(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=f"--keywords .*pairs.yaml.*{message}"):
        read_combinations(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read .No such file.*give appendix, or a YAML file"):
        read_combinations(str(tmp_path / "apendix"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_combinations(str(tmp_path / "binary"))
