"""The page: what it shows is what training gets, boxes lie on the right pixels, and text stays text."""

import base64
import io
import json
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from planted import SIZE, make_recipe, picture, sample, write_shards

from vlp.data.loader import make_loader
from vlp.data.sample import make_sample
from vlp.data.sources import training_mixture
from vlp.data.views import crop_box, decode_image, render
from vlp.data_report.contact_sheet import (
    COLOURS,
    UNUSED,
    Card,
    decode,
    make_card,
    write_contact_sheet,
)
from vlp.data_report.reading import Drawn, ReadShards, draw, training_rng
from vlp.data_report.report import check_data
from vlp.objectives.graph import graph_needs
from vlp.recipe import Recipe

WHOLE_PICTURE = ("data.crop_scale=[1, 1]",)


def draws(recipe: Recipe, count: int = 1000) -> list[Drawn]:
    return list(draw(training_mixture(recipe), recipe, count, ReadShards()))


def pixels(card: Card, label: str) -> list[np.ndarray]:
    uris = [picture.uri for picture in card.pictures if picture.label == label]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for uri in uris]


class Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


def make_page(recipe: Recipe, path: Path, count: int = 24) -> str:
    report, chosen = check_data(recipe, 1000, count, 1)
    write_contact_sheet(path, recipe, report, chosen)
    return path.read_text()


# ---- as training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["null", "[1, 2]"])
def test_samples_crops_and_captions_are_those_of_the_first_epoch(tmp_path: Path, weights: str) -> None:
    for part in "ab":
        (tmp_path / part).mkdir()
        record = {"long": "One. Two words. Three. Four and more."}
        write_shards(tmp_path / part, [sample(10 * (part == "b") + i, record) for i in range(10)])
    overrides = (f"data.train={tmp_path}/a/*.tar::{tmp_path}/b/*.tar", f"data.weights={weights}", "data.flip=0.5")
    recipe = make_recipe(tmp_path, *overrides, "data.streams=1", "data.workers=0", "train.batch_size=1")
    expected = 20 if weights == "null" else 30
    ours, needs = draws(recipe), graph_needs(recipe).data
    assert len(ours) == expected
    loader = make_loader(recipe, lambda step: needs, 0, 1, {}, 0)
    for drawn, loaded in zip(ours, islice(loader, expected), strict=True):
        card = make_card(drawn, make_recipe_without_boxes(recipe))
        (image,) = pixels(card, "what the model sees")
        assert np.array_equal(image.transpose(2, 0, 1), loaded.batch.images_B3HW[0].numpy())
        for name, ids_BKL in loaded.batch.captions.items():
            kept = [caption.kept for caption in card.captions if caption.request == name]
            assert kept == [decode([i for i in ids if i]) for ids in ids_BKL[0].tolist()]


def make_recipe_without_boxes(recipe: Recipe) -> Recipe:
    tasks = {name: o for name, o in recipe.objectives.items() if name not in ("referring", "grounded")}
    return recipe.model_copy(update={"objectives": tasks})


@pytest.mark.parametrize(
    "overrides", [(), ("data.flip=0.5", "data.crop_scale=[0.3, 0.9]"), ("data.views.global_size=64",)]
)
def test_the_crop_is_the_one_that_the_picture_was_rendered_with(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    samples = [sample(n, {"regions": []}, png=None, jpg=stream.getvalue()) for n in range(8)]
    recipe = make_recipe(write_shards(tmp_path, samples), *overrides)
    needs = graph_needs(recipe).data
    for drawn in draws(recipe):
        crop = make_sample(drawn.raw, needs, recipe, 0, training_rng(recipe, drawn)).crop
        image = decode_image(drawn.raw["jpg"], max(SIZE, recipe.views.global_size))
        (shown,) = pixels(make_card(drawn, recipe), "what the model sees")
        assert np.array_equal(shown.transpose(2, 0, 1), render(image, crop, SIZE))


def test_views_tasks_and_captions_are_all_shown(tmp_path: Path) -> None:
    recipe = make_recipe(write_shards(tmp_path, [sample(number) for number in range(4)]))
    for drawn in draws(recipe):
        card = make_card(drawn, recipe)
        assert [view.shape for view in pixels(card, "global view")] == [(SIZE, SIZE, 3)] * 2
        assert [view.shape for view in pixels(card, "local view")] == [(16, 16, 3)]
        assert [caption.request for caption in card.captions] == ["shortx2", "shortx2", "long"]
        number = int(drawn.key[1:])
        assert {prompt.task: (prompt.prompt, prompt.answer) for prompt in card.prompts} | {"referring": 0} == {
            "caption": ("caption :", f"small cat {' '.join(str(number))}"),
            "referring": 0,
            "grounded": (next(p.prompt for p in card.prompts if p.task == "grounded"), "small cat"),
            "vqa": ("vqa what sleeps ?, answer is", "the cat"),
        }
        assert card.missing == []


def test_without_views_and_boxes_nothing_of_them_is_shown(tmp_path: Path) -> None:
    recipe = make_recipe(write_shards(tmp_path, [sample(number) for number in range(2)]), name="clip")
    card = make_card(draws(recipe)[0], recipe)
    assert [picture.label for picture in card.pictures] == ["whole picture", "what the model sees"]
    assert card.regions == card.prompts == []


# ---- boxes ------------------------------------------------------------------------------------------------------


def has_colour(image: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels are of this colour, but for what JPEG makes of it."""
    return np.abs(image.astype(int) - ImageColor.getrgb(colour)).max(-1) < 50


def edge_of(image: np.ndarray, colour: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of this colour, which are the outline of one box, a pixel wide."""
    marked = has_colour(image, colour)
    rows, columns = np.nonzero(marked)
    left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
    outline = np.zeros_like(marked)
    outline[[top, bottom], left : right + 1] = outline[top : bottom + 1, [left, right]] = True
    assert np.array_equal(marked, outline)
    return left, top, right, bottom


def test_boxes_lie_on_the_pixels_that_the_answer_names(tmp_path: Path) -> None:
    boxes = [[0.25, 0.25, 0.75, 0.5], [0.0, 0.625, 1.0, 1.0]]
    record = {"regions": [{"box": box, "phrase": f"cat {n}", "score": 0.9} for n, box in enumerate(boxes)]}
    samples = [sample(n, record, png=picture(n, (64, 64))) for n in range(2)]
    recipe = make_recipe(write_shards(tmp_path, samples), *WHOLE_PICTURE, "data.flip=0")
    drawn = draws(recipe)[0]
    card = make_card(drawn, recipe)
    crop = make_sample(drawn.raw, graph_needs(recipe).data, recipe, 0, training_rng(recipe, drawn)).crop
    (inside,) = pixels(card, "what the model sees")
    for box, colour in zip(boxes, COLOURS, strict=False):
        expected = tuple(min(SIZE - 1, int(edge * SIZE)) for edge in crop_box(box, crop))
        assert edge_of(inside, colour) == expected
    answer = next(prompt.answer for prompt in card.prompts if prompt.task == "referring").replace(" ", "")
    assert tuple(json.loads(answer)) in [edge_of(inside, colour) for colour in COLOURS[:2]]


def test_a_box_on_the_whole_picture(tmp_path: Path) -> None:
    recipe = make_recipe(write_shards(tmp_path, [sample(n, png=picture(n, (80, 40))) for n in range(2)]))
    (whole,) = pixels(make_card(draws(recipe)[0], recipe), "whole picture")
    assert whole.shape == (40, 80, 3) and edge_of(whole, COLOURS[0]) == (20, 10, 60, 30)


def test_boxes_that_are_not_used_are_grey_and_say_why(tmp_path: Path) -> None:
    regions = [
        {"box": [0.25, 0.25, 0.75, 0.75], "phrase": "unsure", "score": 0.1},
        {"box": [10, 20, 30, 40], "phrase": "pixels"},
        "no region",
        {"box": [0.0, 0.0, 0.01, 0.01], "phrase": "cut off"},
    ]
    recipe = make_recipe(
        write_shards(tmp_path, [sample(n, {"regions": regions}, png=picture(n, (64, 64))) for n in range(2)]),
        "data.crop_scale=[0.3, 0.4]",
    )
    card = make_card(draws(recipe)[0], recipe)
    states = [region.state for region in card.regions]
    assert [region.colour for region in card.regions] == [UNUSED] * 4
    assert "below data.box_score" in states[0] and "pixel coordinates" in states[1] and "no object" in states[2]
    assert states[3] == "less than half of it is in the crop; not used"
    (whole,), (inside,) = pixels(card, "whole picture"), pixels(card, "what the model sees")
    assert has_colour(whole, UNUSED)[16, 16:49].all() and not has_colour(whole, UNUSED)[17:48, 17:48].any()
    assert not has_colour(inside, UNUSED).any()
    assert set(card.missing) == {"referring", "grounded"}


# ---- texts ------------------------------------------------------------------------------------------------------


def test_captions_are_shown_before_and_after_the_cut(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in "abcdefghij" * 6) + " the end"
    recipe = make_recipe(write_shards(tmp_path, [sample(n, {"long": long}) for n in range(2)]))
    (caption,) = [c for c in make_card(draws(recipe)[0], recipe).captions if c.request == "long"]
    assert caption.text == long and caption.length > 77
    assert caption.kept.startswith("word a word b") or caption.kept.startswith("worda wordb")
    assert not caption.kept.endswith("the end") and caption.lost.endswith("the end")
    assert (caption.kept + caption.lost).replace(" ", "") == long.replace(" ", "")


EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp; \' " \0 \u202e \x1b[31m'


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    record = {
        "short": [EVIL],
        "long": [EVIL + " cat" * 100],
        "regions": [{"box": [0, 0, 1, 1], "phrase": EVIL}, {"box": EVIL, "phrase": EVIL}],
        "vqa": [{"question": EVIL, "answer": EVIL}],
    }
    samples = [sample(n, record) | {"__key__": f"<script>{n}"} for n in range(4)]
    html = make_page(make_recipe(write_shards(tmp_path, samples)), tmp_path / "page.html")
    page = Page(html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/") for name, value in page.attributes if name == "src")
    assert '<script>alert("x")</script><img src=x onerror=alert(1)>' in page.text
    assert "\\x00 \\u202e \\x1b[31m" in page.text and "\0" not in page.text and "\x1b" not in page.text
    assert html.isascii()


def test_a_page_on_its_own_with_a_card_for_every_sample(tmp_path: Path) -> None:
    record = {"short": ["ein kleines Kätzchen 😀"], "long": json.loads('"lone \\ud800. Surrogate."')}
    samples = [sample(n, record, **({"png": b"none"} if n == 3 else {})) for n in range(8)]
    recipe = make_recipe(write_shards(tmp_path, samples))
    page = Page(make_page(recipe, tmp_path / "page.html"))
    assert page.tags.count("article") == 8 and page.tags.count("img") == 7 * 5
    assert "the picture does not decode; the sample is skipped" in page.text
    assert "ein kleines Kätzchen 😀" in page.text and "lone \\ud800. Surrogate." in page.text
    assert "default-src 'none'" in dict(page.attributes)["content"]
    assert not [value for name, value in page.attributes if name in ("href", "src") and "://" in (value or "")]
    few = Page(make_page(recipe, tmp_path / "page.html", count=2))
    assert few.tags.count("article") == 2


def test_findings_head_the_page(tmp_path: Path) -> None:
    samples = [sample(n, {"short": ["", "<b>a cat</b>"]} if n == 0 else None) for n in range(4)]
    page = Page(make_page(make_recipe(write_shards(tmp_path, samples)), tmp_path / "page.html"))
    assert "1 of 5 captions: short (20.0 %)" in page.text and "b" not in page.tags
