"""Prompts and answers of the decoder's tasks [docs/method.md 3, Decoder; C19, C20]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlp.data import tokens
from vlp.data.captions import caption_fields
from vlp.data.views import Crop, crop_box
from vlp.settings import DataSettings

Task = Literal["caption", "referring", "grounded", "vqa"]
TEMPLATES: dict[str, tuple[str, str]] = {
    "caption": ("Caption:", "{caption}"),
    "referring": ("OBGR {phrase}, box is", "{box}"),
    "grounded": ("OBGR {box}, grounded caption is", "{phrase}"),
    "vqa": ("VQA {question}, answer is", "{answer}"),
}
"""Prompt and answer of each task where the recipe says nothing else (C19)."""
PARTS = {"caption": ("caption",), "referring": ("phrase", "box"), "grounded": ("phrase", "box"),
         "vqa": ("question", "answer")}  # fmt: skip
"""What the templates of a task may name."""


@dataclass(frozen=True)
class TaskRequest:
    """Prompts of one decoder task for a share of the images. `prompt` and `answer` are templates, None for the usual
    ones; the decoder sees no answer token of a `parallel` share of them."""

    task: Task
    share: float = 1.0
    prompt: str | None = None
    answer: str | None = None
    captions: str = "short"
    parallel: float = 0.0

    @property
    def templates(self) -> tuple[str, str]:
        prompt, answer = TEMPLATES[self.task]
        return prompt if self.prompt is None else self.prompt, answer if self.answer is None else self.answer

    @property
    def name(self) -> str:
        """The task, with its wording where that is not the usual one."""
        prompt, answer = self.templates
        return self.task if (prompt, answer) == TEMPLATES[self.task] else f"{self.task} '{prompt}' '{answer}'"

    @property
    def field(self) -> str:
        """A field of the data that it reads."""
        return {"caption": caption_fields(self.captions)[-1], "vqa": "vqa"}.get(self.task, "regions")


def box_text(box: tuple[float, float, float, float], size: int) -> str:
    """`[xmin, ymin, xmax, ymax]` in whole pixels 0 to size-1 of the model's view (C20)."""
    return "[" + ", ".join(str(min(size - 1, max(0, int(edge * size)))) for edge in box) + "]"


def make_prompt(
    request: TaskRequest,
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
    if request.task == "caption":
        found = [{"caption": text} for kind in caption_fields(request.captions) for text in captions[kind]]
    elif request.task == "vqa":
        pairs = _mappings(annotations, settings.fields.vqa)
        found = [pair for pair in pairs if _texts(pair, "question", "answer")]
    else:
        found = _regions(annotations, crop, size, settings)
    if not found:
        return None
    parts = found[rng.integers(len(found))]
    prompt, answer = request.templates
    return prompt.format_map(parts), answer.format_map(parts)


def _regions(annotations: Mapping[str, Any], crop: Crop, size: int, settings: DataSettings) -> list[dict[str, str]]:
    """Phrase and box of every region that is scored well enough and seen well enough."""
    regions = []
    for region in _mappings(annotations, settings.fields.regions):
        score = region.get("score", 1.0)
        if not (_texts(region, "phrase") and isinstance(score, (int, float)) and score >= settings.box_score):
            continue
        box = crop_box(region.get("box"), crop)
        if box is not None:
            regions.append({"phrase": region["phrase"], "box": box_text(box, size)})
    return regions


def encode_prompt(prompt: str, answer: str, context_length: int) -> tuple[list[int], int]:
    """Ids of start token, prompt, answer and end token, and the position of the answer's first id."""
    head = [tokens.START, *tokens.encode(prompt)]
    return [*head, *tokens.encode(answer), tokens.END][:context_length], len(head)


def _mappings(annotations: Mapping[str, Any], field: str | None) -> list[dict[str, Any]]:
    value = annotations.get(field) if field else None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(item: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(item.get(key), str) and item[key].strip() for key in keys)
