"""Phrases that name things in a picture, out of its captions: spaCy's noun chunks [docs/method.md 3, Data]."""

import re
from itertools import islice
from typing import TYPE_CHECKING

from vlp.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Span, Token

# fmt: off
NO_THINGS = frozenset({
    # the picture itself, which has no box but the whole
    "image", "picture", "photo", "photograph", "snapshot", "shot", "scene", "view", "setting", "composition",
    # places in it, and parts of nothing in particular
    "background", "foreground", "backdrop", "side", "left", "right", "bottom", "middle", "center", "centre",
    "corner", "edge", "distance", "part", "portion", "area", "position", "direction", "surrounding", "vicinity",
    "proximity",
    # whatever there is, and whoever looks at it
    "item", "object", "thing", "viewer",
    # amounts: of "a pair of shoes", the chunk "shoes" is the thing
    "pair", "couple", "group", "bunch", "number", "amount", "variety", "lot", "set", "array", "range", "series",
    "collection", "piece", "kind", "type", "sort", "total", "one", "dozen", "majority", "rest", "each",
    # what cannot be seen as one thing; GRIT leaves out "time", "love" and "freedom" for this
    "time", "day", "moment", "season", "way", "addition", "sense", "atmosphere", "mood", "ambiance", "ambience",
    "feeling", "touch", "impression", "presence", "appearance", "style", "theme", "focus", "attention", "emphasis",
    "contrast", "detail", "element", "feature", "aspect", "fact", "purpose", "use", "effect", "activity", "action",
    "event", "experience", "interest", "love", "joy", "fun", "freedom", "beauty", "nature", "life", "relaxation",
    "charm", "depth", "color", "colour", "size", "shape",
})
"""Lemmas of nouns that a detector cannot box: chunks of which they are the main word are left out."""
NO_THINGS_ALONE = frozenset({"top", "back", "front", "end", "rear"})
"""The same where nothing describes them: "the top" is a place, "a white top" is worn."""
COUNTING = frozenset({
    "other", "several", "many", "few", "various", "multiple", "numerous", "different", "more", "most", "some",
    "such", "same",
})
"""Adjectives that count or single out; a box holds one thing, whichever it is."""
# fmt: on
MAX_WORDS = 10
"""Longer chunks are parser mistakes, and the detector reads no more than 16 tokens."""
MAX_CHARACTERS = 10_000
"""Of a caption. The parser's memory grows with the text, and no caption of a picture is longer."""


def load_phrase_model(name: str) -> "Language":
    """The spaCy pipeline of this name or path, with what noun chunks need. Raises `UserError` if there is none."""
    try:
        import spacy
    except ImportError:
        raise UserError("phrases want spaCy: pip install -e '.[annotate]'") from None
    try:
        nlp = spacy.load(name, exclude=["ner"])
    except (OSError, ValueError):
        raise UserError(
            f"--nlp {name} is no spaCy model that can be loaded here; install it: python -m spacy download {name}"
        ) from None
    if not (nlp.has_pipe("parser") and nlp.has_pipe("lemmatizer")):
        raise UserError(f"--nlp {name} has no parser or no lemmatizer; noun chunks want both, as en_core_web_sm has")
    return nlp


def noun_phrases(nlp: "Language", captions: list[list[str]], most: int) -> list[list[str]]:
    """For the captions of each picture, the first `most` distinct phrases, in lower case and reading order.

    A phrase is a noun chunk without its determiners, possessive pronouns and counts, that names a thing with a place
    in the picture: "Its two brown dogs are on the left side of the image" has "brown dogs" alone.
    """
    texts = [_readable(text) for picture in captions for text in picture]
    docs = nlp.pipe(texts)
    phrases = []
    for picture in captions:
        found = (_phrase(chunk) for doc in islice(docs, len(picture)) for chunk in doc.noun_chunks)
        phrases.append(list(dict.fromkeys(filter(None, found)))[:most])
    return phrases


def _readable(text: str) -> str:
    """What spaCy can take: not endless, and without the half characters that JSON may hold."""
    return text[:MAX_CHARACTERS].encode(errors="replace").decode()


def _phrase(chunk: "Span") -> str | None:
    if chunk.root.pos_ not in ("NOUN", "PROPN") or chunk.root.lemma_.lower() in NO_THINGS:
        return None
    if any(token.lower_ == "no" for token in chunk):  # "there are no people"
        return None
    start = next(i for i, token in enumerate(chunk) if token == chunk.root or not _only_refers(token, chunk.root))
    text = chunk[start:].text.lower().replace("\u2019", "'")
    words = re.sub(r"[^\w\s'&./-]|_", " ", text).strip(" \t\n'&./-").split()
    phrase = " ".join(words)
    names_a_thing = any(letter.isalpha() for letter in phrase) and phrase not in NO_THINGS | NO_THINGS_ALONE
    return phrase if names_a_thing and len(words) <= MAX_WORDS else None


def _only_refers(token: "Token", root: "Token") -> bool:
    """Whether the word says which or how many; of "two-story house", "two" belongs to the story."""
    return (
        token.pos_ in ("DET", "PRON", "PUNCT", "SPACE")
        or (token.pos_ == "NUM" and token.head == root)
        or token.lower_ in COUNTING
    )
