"""What can be wrong with one caption, one region, one question, one picture. The names are those of `catalogue.py`."""

import io
import math
import unicodedata
from typing import Any

from PIL import Image

from vlp.data.captions import LONGEST
from vlp.settings import DataSettings

PIXELS_FROM = 1.5
"""A box edge above it is no fraction that was rounded badly."""
WIDEST = 3.0
"""Ratio of a picture's sides beyond which a crop shows too little of it."""


def caption_problems(text: Any) -> list[str]:
    """Of one caption as it stands in the JSON."""
    if not isinstance(text, str):
        return ["caption_not_text"]
    if not text.strip():
        return ["caption_empty"]
    found = {
        "caption_very_long": len(text) > LONGEST,
        "caption_control_characters": any(unicodedata.category(char) == "Cc" and char not in "\n\r\t" for char in text),
        "caption_not_utf8": "\ufffd" in text or any("\ud800" <= char <= "\udfff" for char in text),
    }
    return [problem for problem, is_so in found.items() if is_so]


def region_problem(region: Any, settings: DataSettings, size: int) -> str | None:
    """Of one region, the first that counts; all but `box_tiny` keep it out of training. `size` is the model's."""
    if not isinstance(region, dict):
        return "region_not_object"
    if not _is_text(region.get("phrase")):
        return "region_without_phrase"
    score = region.get("score", 1.0)
    if not isinstance(score, (int, float)) or not abs(score) < math.inf:
        return "score_not_number"
    problem = box_problem(region.get("box"), size)
    return "box_low_score" if problem in (None, "box_tiny") and score < settings.box_score else problem


def box_problem(box: Any, size: int) -> str | None:
    """Of [left, top, right, bottom], which should be fractions of the picture."""
    if not isinstance(box, list) or [type(edge) in (int, float) for edge in box] != [True] * 4:
        return "box_not_four_numbers"
    if not all(abs(edge) < math.inf for edge in box):
        return "box_not_finite"
    if max(box) > PIXELS_FROM:
        return "box_in_pixels"
    if min(box) < 0 or max(box) > 1:
        return "box_outside"
    width, height = box[2] - box[0], box[3] - box[1]
    if width < 0 or height < 0:
        return "box_reversed"
    if width == 0 or height == 0:
        return "box_without_area"
    return "box_tiny" if min(width, height) * size < 1 else None


def question_problem(pair: Any) -> str | None:
    """Of one question with its answer."""
    if not isinstance(pair, dict):
        return "question_not_object"
    if not _is_text(pair.get("question")):
        return "question_empty"
    answer = pair.get("answer")
    if answer is not None and not isinstance(answer, str):
        return "answer_not_text"
    return None if _is_text(answer) else "question_without_answer"


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as its header has them; None for what is no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # as in decoding, Pillow raises a dozen kinds
        return None


def picture_problems(width: int, height: int, size: int) -> list[str]:
    """Of a picture whose crop becomes `size` pixels wide and high."""
    small, large = sorted((width, height))
    return ["picture_small"] * (small < size) + ["picture_extreme_aspect"] * (large > WIDEST * small)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
