"""Byte pairs as open_clip makes them, without the padding."""

import time
from itertools import chain, product

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from vlp.data.tokens import END, PAD, START, VOCABULARY, encode, encode_batch, encode_caption, pad, tokenize

reference = SimpleTokenizer()
PIECES = [
    "<start_of_text>", "<END_of_text>", "<\u017ftart_of_text>", "</s>", "'s", "'\u017f", "don't", "WE'LL", "o'",
    "dog", "3.5", "1234", "&", "& ", "&amp;", "&amp;amp;", "&amp", "&eacute;", "&#233;", "&#x1F415;", "&#13;",
    "&#xD800;", "&notit;", "&copy", "\r\n", "\r", "\n", "\t", "\f", "\x0b", "\x1b[31m", "\x1c", "\x7f", "\x00", "\x85",
    "\xa0", "\u2028", "\u3000", "\ufeff", "\u200d", "\ud83d\udc15", "\udc15", "e\u0301", "\u00e9", "\u00c3\u00a9",
    "\u00e2\u20ac\u2122", "\ufb01", "\uff21\uff22", "\u2019s", "\u201cquoted\u201d", "\u0130", "\u1e9e",
    "\u4e00\u72ac", "\u0e2a\u0e38", "\u0661\u00bd", "\U0001f468\u200d\U0001f469", "\u2764\ufe0f",
    " ", "  ", "_", "-", "!!!", "...", "#1", "$4.99", "Z" * 70, "a" * 300,
]  # fmt: skip
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
    longest = int(expected.argmax(1).max()) + 1  # the end token has the largest id; padding is an id of words too
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


# ---- open_clip's ids, faster ------------------------------------------------------------------------------------

anything = st.text(st.characters(exclude_categories=()), max_size=80)


@given(anything | st.lists(st.sampled_from(PIECES) | anything, max_size=8).map("".join))
@example(" ".join(PIECES))
@example("".join(PIECES))
@settings(max_examples=1000, deadline=None)
def test_every_text_has_the_ids_of_open_clip(text: str) -> None:
    assert list(encode(text)) == reference.encode(text)


def test_every_pair_of_ascii_characters_has_the_ids_of_open_clip() -> None:
    """Plain text skips the cleaning, so each two of its characters are tried, and those that are not plain too."""
    for first, second in product(map(chr, range(128)), repeat=2):
        text = f"a{first}{second}t"
        assert list(encode(text)) == reference.encode(text), text


@pytest.mark.parametrize(
    "text",
    [
        "Two animals playing outside on a tree branch.",
        "It's the dog's bowl, they'll say; WE'VE 1,024 of 'em & more",
        'Handmade Mother&#39;s Day card &amp; envelope | 5.5" x 4.25" - $3.50',
        "Café Müller \u2013 São Paulo\u2019s “best” №1 · 2019 ™ ½ price",
        "かわいい犬 🐕‍🦺❤️ собака ‏كلب‎",
        "https://example.com/image_001.jpg?w=640&h=480#top",
    ],
)
def test_captions_of_the_web_have_the_ids_of_open_clip(text: str) -> None:
    assert list(encode(text)) == reference.encode(text)


def test_the_order_of_merges_cannot_matter() -> None:
    """What the docstring of the byte pairs claims: a string is made by one merge only, after its parts'."""
    made = {first + second: rank for (first, second), rank in reference.bpe_ranks.items()}
    assert len(made) == len(reference.bpe_ranks)
    for (first, second), rank in reference.bpe_ranks.items():
        assert max(made.get(first, -1), made.get(second, -1)) < rank


def test_a_caption_of_a_megabyte_takes_no_minutes() -> None:
    letters = "".join(chr(97 + (7 * i * i + i // 3) % 26) for i in range(3000))
    assert list(encode(letters)) == reference.encode(letters)
    started = time.process_time()
    assert len(encode(letters * 350)) > 100_000
    assert time.process_time() - started < 30


@given(st.lists(anything, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_batch_is_its_texts_one_after_another(texts: list[str]) -> None:
    ids, lengths = encode_batch(texts)
    assert ids.tolist() == list(chain.from_iterable(map(encode, texts)))
    assert lengths.tolist() == [len(encode(text)) for text in texts]
