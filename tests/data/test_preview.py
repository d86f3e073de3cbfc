"""The look at the first samples before training."""

import json
from pathlib import Path

import pytest
import webdataset

from vlp.data import preview as module
from vlp.data.preview import preview
from vlp.errors import UserError
from vlp.recipe import SHIPPED_RECIPES, Recipe, load_recipe

RECORD = {
    "raw": "alt text",
    "short": ["a small cat"],
    "long": ["A small cat. It sleeps."],
    "regions": [{"box": [0.1, 0.1, 0.9, 0.9], "phrase": "small cat"}],
    "vqa": [{"question": "what sleeps?", "answer": "the cat"}],
}


def make(folder: Path, *records: dict, image: str = "jpg", overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe on a first shard without samples and a second of these records."""
    with webdataset.TarWriter(str(folder / "0.tar"), encoder=False):
        pass
    with webdataset.TarWriter(str(folder / "1.tar"), encoder=False) as tar:
        for number, record in enumerate(records):
            tar.write({"__key__": f"k{number}", image: b"not looked into", "json": json.dumps(record).encode()})
    given = [f"data.train={folder}/*.tar", "data.streams=1", *overrides]
    return load_recipe(SHIPPED_RECIPES / "goldi_super.yaml", given, world_size=1)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(module.console, "print", lambda text, **_: lines.append(text))
    return lines


def test_it_prints_how_many_serve_and_a_drawn_text_of_each(tmp_path: Path, printed: list[str]) -> None:
    preview(make(tmp_path, RECORD, RECORD | {"vqa": []}, [1]))
    assert printed[0] == "2 training shards; of the first 3 samples:"
    told = dict(line.strip().split(": ", 1) for line in printed[1:])
    assert told["caption"] == "2 have it, e.g. 'Caption: -> a small cat'"
    assert told["vqa"] == "1 have it, e.g. 'VQA what sleeps?, answer is -> the cat'"
    assert "'OBGR small cat, box is -> [" in told["referring"]
    assert told["long"] == "2 have it, e.g. 'A small cat. It sleeps.'"


@pytest.mark.parametrize(
    ("field", "reads"),
    [("vqa", "vqa"), ("regions", "referring"), ("long", "long")],
)
def test_a_field_that_nobody_has_is_named(tmp_path, printed, field: str, reads: str) -> None:
    recipe = make(tmp_path, RECORD | {field: []}, RECORD | {field: None})
    with pytest.raises(UserError) as raised:
        preview(recipe)
    line = str(raised.value)
    assert (
        line.startswith("data.train: none of the first 2 samples of ") and f"the field '{field}' that '{reads}'" in line
    )
    assert f"or name in data.fields.{field} the key that has it" in line and "; add it by tools/prepare_" in line


def test_a_field_map_serves(tmp_path: Path, printed: list[str]) -> None:
    record = {("questions" if key == "vqa" else key): value for key, value in RECORD.items()}
    preview(make(tmp_path, record, overrides=("data.fields.vqa=questions",)))
    assert any(line.startswith("  vqa: 1 have it") for line in printed)


def test_shards_in_which_nothing_can_be_used(tmp_path: Path, printed: list[str]) -> None:
    with pytest.raises(UserError, match=r"none of the first 2 samples can be used: no_image \(2\)"):
        preview(make(tmp_path, RECORD, RECORD, image="bmp"))
    with pytest.raises(UserError, match=r"none of the first 0 samples can be used: the shards are empty"):
        preview(make(tmp_path))
