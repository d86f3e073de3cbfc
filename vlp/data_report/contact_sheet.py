"""A page that shows samples as the model gets them: crops, boxes, views, captions before and after the cut, prompts."""

import base64
import io
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageDraw

from vlp.data import tokens
from vlp.data.sample import Sample, make_sample
from vlp.data.shards import BadSample, image_bytes, read_annotations
from vlp.data.views import crop_box, decode_image
from vlp.data_report.catalogue import CATALOGUE
from vlp.data_report.printable import printable
from vlp.data_report.problems import box_problem, region_problem
from vlp.data_report.reading import Drawn, training_rng
from vlp.data_report.report import DataReport
from vlp.data_report.tables import example, found
from vlp.files import write_text
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45")
UNUSED = "#a0a0a0"
LARGEST = 448
"""Pixels of the longer side of the whole picture on the page."""
SHOWN_FROM = 160
"""Smaller pictures are enlarged on the page to at least about this many pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture within the page, and the width at which it is shown."""

    label: str
    uri: str
    width: int


@dataclass(frozen=True)
class Region:
    """A region, the colour of its box, and why it is not used if it is not."""

    colour: str
    phrase: str
    box: str
    state: str


@dataclass(frozen=True)
class Caption:
    """A drawn caption: its text, what its tokens say, and what the cut takes away."""

    request: str
    text: str
    kept: str
    lost: str
    length: int


@dataclass(frozen=True)
class Prompt:
    """A decoder task's prompt and answer, as their tokens say them."""

    task: str
    prompt: str
    answer: str
    remark: str


@dataclass
class Card:
    """One sample on the page; `skipped` says why training skips it."""

    key: str
    shard: str
    skipped: str = ""
    pictures: list[Picture] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def write_contact_sheet(path: Path, recipe: Recipe, report: DataReport, samples: list[Drawn]) -> None:
    """One self-contained HTML file: the findings, and a card for each sample. All text of the data is escaped."""
    templates = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=templates, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("contact_sheet.html.j2").render(
        report=report,
        cards=[make_card(drawn, recipe) for drawn in samples],
        context=recipe.model.text.context_length,
        found=found,
        example=example,
    )
    write_text(path, page.encode("ascii", "xmlcharrefreplace").decode("ascii"))  # whatever the locale


def make_card(drawn: Drawn, recipe: Recipe) -> Card:
    """The sample as training draws it in its first epoch, as if it were its turn for every task and for views."""
    needs = graph_needs(recipe).data
    card = Card(printable(drawn.key), printable(drawn.shard))
    in_turn = replace(
        needs, tasks=tuple(replace(task, share=1.0) for task in needs.tasks), view_share=float(needs.view_share > 0)
    )
    try:
        sample = make_sample(drawn.raw, in_turn, recipe, 0, training_rng(recipe, drawn))
    except BadSample as reason:
        known = CATALOGUE.get(str(reason))
        card.skipped = known.what if known else str(reason).replace("_", " ") + "; the sample is skipped"
        return card
    card.captions = [
        _caption(name, text, ids)
        for name, texts in sample.texts.items()
        for text, ids in zip(texts, sample.captions[name], strict=True)
    ]
    card.prompts = [_prompt(name, *prompt) for name, prompt in sample.prompts.items()]
    card.missing = sample.missing
    regions = []
    if "regions" in {task.field for task in needs.tasks}:
        regions = read_annotations(drawn.raw).get(recipe.data.fields.regions or "")
    whole, inside, card.regions = _draw_regions(drawn.raw, sample, regions, recipe)
    card.pictures = [_picture("whole picture", whole, "JPEG"), _picture("what the model sees", inside)]
    for label, views in zip(("global view", "local view"), sample.views or (), strict=False):
        card.pictures += [_picture(label, _image(view)) for view in views]
    return card


def _draw_regions(
    raw: dict[str, Any], sample: Sample, regions: Any, recipe: Recipe
) -> tuple[Image.Image, Image.Image, list[Region]]:
    """The whole picture and the model's crop with the boxes drawn, in the crop those that training uses."""
    size = recipe.model.vision.image_size
    whole = decode_image(image_bytes(raw), LARGEST)
    whole.thumbnail((LARGEST, LARGEST))
    inside, rows = _image(sample.image), []
    for number, region in enumerate(regions if isinstance(regions, list) else []):
        problem = region_problem(region, recipe.data, size)
        used = problem in (None, "box_tiny")
        region = region if isinstance(region, dict) else {}
        box = region.get("box")
        cropped = crop_box(box, sample.crop) if used else None
        colour = COLOURS[number % len(COLOURS)] if cropped else UNUSED
        if box_problem(box, size) in (None, "box_tiny", "box_outside"):
            _draw_box(whole, box, colour)
        if cropped:
            _draw_box(inside, cropped, colour)
        state = CATALOGUE[problem].what if problem else ""
        if used and not cropped:
            state = "less than half of it is in the crop; not used"
        rows.append(Region(colour, printable(str(region.get("phrase", "")), 200), printable(str(box), 80), state))
    return whole, inside, rows


def _draw_box(image: Image.Image, box: list[float] | tuple[float, ...], colour: str) -> None:
    """On the pixels that `box_text` names."""
    width, height = image.size
    sides = (width, height, width, height)
    edges = [min(side - 1, max(0, int(edge * side))) for edge, side in zip(box, sides, strict=True)]
    ImageDraw.Draw(image).rectangle(edges, outline=colour, width=max(1, max(width, height) // 150))


def _caption(request: str, text: str, ids: list[int]) -> Caption:
    every = tokens.encode(text)
    kept = len(ids) - 2
    return Caption(request, printable(text, 2000), decode(ids), decode(every[kept : kept + 500]), len(every) + 2)


def _prompt(task: str, ids: list[int], answer_start: int, parallel: bool) -> Prompt:
    remarks = ["cut"] * (ids[-1] != tokens.END) + ["all answer tokens hidden from the decoder"] * parallel
    return Prompt(printable(task), decode(ids[:answer_start]), decode(ids[answer_start:]), "; ".join(remarks))


def decode(ids: list[int] | tuple[int, ...]) -> str:
    """What byte-pair ids say, without start and end token; CLIP's are lower case, with spaces around marks."""
    text = _tokenizer().decode([number for number in ids if number not in (tokens.START, tokens.END)])
    return printable(text.strip())


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def _image(pixels: np.ndarray) -> Image.Image:
    """From uint8 [3, height, width]."""
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _picture(label: str, image: Image.Image, kind: str = "PNG") -> Picture:
    """The model's views are kept exactly, as PNG."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 90, "subsampling": 0} if kind == "JPEG" else {}))
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(label, uri, image.width * max(1, round(SHOWN_FROM / max(image.size))))
