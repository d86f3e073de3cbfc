"""Repeats are counted exactly, however little is held at once."""

import io

from hypothesis import given
from hypothesis import strategies as st

from vlp.annotation.repeats import count_repeats, hash_texts


@given(st.lists(st.sampled_from("abcdefgh") | st.text(st.characters(exclude_categories=()))), st.integers(1, 9))
def test_repeats_are_counted_part_by_part(texts: list[str], at_once: int) -> None:
    assert count_repeats(io.BytesIO(hash_texts(texts)), at_once) == len(texts) - len(set(texts))
