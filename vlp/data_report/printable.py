"""Foreign text on a terminal and on a page."""

import unicodedata

TURNS_TEXT = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str, most: int | None = None) -> str:
    """`text` with control characters, lone surrogates and changes of direction as escapes, cut to `most` characters."""
    cut = text if most is None or len(text) <= most else text[: most - 1] + "…"
    return "".join(char.encode("unicode_escape").decode() if _is_hidden(char) else char for char in cut)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs") or char in TURNS_TEXT
