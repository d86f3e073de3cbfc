"""Byte pairs as open_clip makes them, without the padding."""

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from vlp.data.tokens import END, PAD, START, VOCABULARY, encode, encode_caption, pad, tokenize

reference = SimpleTokenizer()
texts = st.lists(st.text(max_size=60) | st.just("a small dog " * 30), min_size=1, max_size=4)


@given(texts, st.sampled_from([8, 20, 77]))
@example(["", "!", "a\x00b", "Ünïcödé 犬 &amp; 3.5!?", "dog " * 75, "dog " * 76, "dog " * 74], 77)
@settings(max_examples=100, deadline=None)
def test_ids_are_open_clip_s_cut_to_the_longest(texts: list[str], context: int) -> None:
    ids, expected = tokenize(texts, context), reference(texts, context_length=context)
    length = ids.shape[1]
    assert length == context or (length % 8 == 0 and length < context)
    assert torch.equal(ids, expected[:, :length])
    assert not expected[:, length:].any()
    longest = int((expected != PAD).sum(1).max())
    assert longest <= length < longest + 8


def test_the_named_ids_are_the_tokenizer_s() -> None:
    assert (reference.sot_token_id, reference.eot_token_id, reference.vocab_size) == (START, END, VOCABULARY)
    assert torch.equal(tokenize(["a dog"], 77), open_clip.get_tokenizer("ViT-B-32")(["a dog"])[:, :8])


def test_a_long_caption_ends_with_the_end_token() -> None:
    ids = encode_caption("dog " * 100, 77)
    assert len(ids) == 77 and ids[0] == START and ids[-1] == END and END not in ids[:-1]
    assert encode("dog") == (ids[1],)


@pytest.mark.parametrize(("lengths", "length"), [([], 8), ([1], 8), ([8], 8), ([3, 9], 16), ([73], 77), ([77, 1], 77)])
def test_padding(lengths: list[int], length: int) -> None:
    ids = pad([[7] * n for n in lengths], 77)
    assert ids.shape == (len(lengths), length) and ids.dtype == torch.int64
    assert [row.tolist() for row in ids] == [[7] * n + [PAD] * (length - n) for n in lengths]
