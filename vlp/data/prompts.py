"""Prompts and answers of the decoder's tasks [docs/method.md 3, Decoder; C19, C20]."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from vlp.data import tokens
from vlp.data.views import Crop, crop_box
from vlp.settings import DataSettings

Task = Literal["caption", "referring", "grounded", "vqa"]
TASK_FIELDS: dict[str, str] = {"caption": "short", "referring": "regions", "grounded": "regions", "vqa": "vqa"}
FIELD_TOOLS = {
    "raw": "tools/prepare_captions.py",
    "short": "tools/prepare_captions.py",
    "long": "tools/prepare_captions.py",
    "regions": "tools/prepare_regions.py",
    "vqa": "tools/prepare_vqa.py",
}


def box_text(box: tuple[float, float, float, float], size: int) -> str:
    """`[xmin, ymin, xmax, ymax]` in whole pixels 0 to size-1 of the model's view (C20)."""
    return "[" + ", ".join(str(min(size - 1, max(0, int(edge * size)))) for edge in box) + "]"


def make_prompt(
    task: str,
    captions: Mapping[str, list[str]],
    annotations: Mapping[str, Any],
    crop: Crop,
    size: int,
    settings: DataSettings,
    rng: np.random.Generator,
) -> tuple[str, str] | None:
    """Prompt and answer of one task for one image; None when the sample has nothing for it.

    `crop` is the part of the image that the model sees; boxes are carried into it. One caption, one box and
    one question are drawn (C25, C26).
    """
    if task == "caption":
        texts = captions["short"]
        return ("Caption:", texts[rng.integers(len(texts))]) if texts else None
    if task == "vqa":
        pairs = [pair for pair in _mappings(annotations, settings.fields.vqa) if _texts(pair, "question", "answer")]
        if not pairs:
            return None
        pair = pairs[rng.integers(len(pairs))]
        return f"VQA {pair['question']}, answer is", pair["answer"]
    regions = []
    for region in _mappings(annotations, settings.fields.regions):
        score = region.get("score", 1.0)
        if not (_texts(region, "phrase") and isinstance(score, (int, float)) and score >= settings.box_score):
            continue
        box = crop_box(region.get("box"), crop)
        if box is not None:
            regions.append((region["phrase"], box_text(box, size)))
    if not regions:
        return None
    phrase, box = regions[rng.integers(len(regions))]
    if task == "referring":
        return f"OBGR {phrase}, box is", box
    return f"OBGR {box}, grounded caption is", phrase


def encode_prompt(prompt: str, answer: str, context_length: int) -> tuple[list[int], int]:
    """Ids of start token, prompt, answer and end token, and the position of the answer's first id."""
    head = [tokens.START, *tokens.encode(prompt)]
    return [*head, *tokens.encode(answer), tokens.END][:context_length], len(head)


def _mappings(annotations: Mapping[str, Any], field: str | None) -> list[dict[str, Any]]:
    value = annotations.get(field) if field else None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(item: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(item.get(key), str) and item[key].strip() for key in keys)
