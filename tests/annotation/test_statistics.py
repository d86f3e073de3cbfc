"""Statistics of shards and caption files against counts by hand and against the loss that reads them."""

import bz2
import csv
import gzip
import io
import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from random_run import run_tool
from safetensors.torch import load_file

from vlp.annotation import gathering
from vlp.annotation.caption_files import caption_files, read_pieces
from vlp.annotation.gathering import forget_parts, gather_shards
from vlp.annotation.keywords import read_combinations
from vlp.annotation.statistics import CountSettings, Statistics, caption_frequency, count_shard
from vlp.annotation.statistics_report import quantile
from vlp.data.shards import read_shard
from vlp.data.tokens import VOCABULARY, encode, encode_batch, tokenize
from vlp.objectives.classification import document_frequency

TOOL = "tools/prepare_statistics.py"


def picture(width: int, height: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, kind)
    return stream.getvalue()


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def sample(key: str, image: bytes | None = None, txt: str | None = None, **annotations) -> dict:
    files = {"jpg": image, "txt": txt and txt.encode(), "json": json.dumps(annotations).encode()}
    return {"__key__": key} | {suffix: data for suffix, data in files.items() if data is not None}


def frequency(captions: list[str], context: int = 77) -> torch.Tensor:
    return document_frequency(tokenize(captions, context))


def results(out: Path) -> tuple[dict[str, torch.Tensor], dict]:
    return load_file(out / "statistics.safetensors"), json.loads((out / "statistics.json").read_text())


# ---- document frequencies ---------------------------------------------------------------------------------------

texts = st.text(max_size=40) | st.lists(st.sampled_from(["dog", "cat", "!", "犬", "<end_of_text>", "<start_of_text>"]),
                                         max_size=90).map(" ".join)  # fmt: skip


@given(st.lists(texts, max_size=5), st.sampled_from([3, 8, 77]))
@example(["dog " * 75, "cat " * 74 + "dog dog dog", "", "a <end_of_text> cat", "<start_of_text> dog dog"], 77)
@settings(max_examples=60, deadline=None)
def test_frequencies_are_those_of_the_loss(captions: list[str], context: int) -> None:
    counted = caption_frequency(*encode_batch(captions), context)
    assert counted.dtype == np.int64 and counted.shape == (VOCABULARY,)
    expected = frequency(captions, context) if captions else torch.zeros(VOCABULARY)
    assert torch.equal(torch.from_numpy(counted), expected.long())


# ---- shards -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of three samples, most of them with something amiss, and two that share a key."""
    folder = tmp_path_factory.mktemp("shards")
    boxes = [{"box": [0, 0, 1, 1], "phrase": "dog"}, {"box": [0, 0, 1, 1], "phrase": "cat"}, 5]
    write_shard(
        folder / "0.tar",
        [
            sample("a", picture(40, 30), short=["a dog", "a cat and a dog"], long="dog " * 80, regions=boxes),
            sample("b", picture(20, 60), txt="a dog", vqa=[{"question": "Which?", "answer": "dog"}]),
            sample("c", b"\xff\xd8 broken", short=5, long=["", None], regions="none", vqa={}),
        ],
    )
    broken = {"__key__": "b", "png": picture(50, 10, "PNG"), "json": b"[1]"}
    write_shard(folder / "1.tar", [broken, sample("d", None, long="a cat"), sample("e", picture(7, 9), "a dog")])
    return folder


def test_the_statistics_of_shards(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keywords = tmp_path / "pairs.yaml"
    keywords.write_text("dog: [[dog]]\ncat + dog: [[cat, cats], [dog]]\nhen: [[hen]]")
    assert run_tool(TOOL, f"{shards}/*.tar", "--out", tmp_path / "out", "--keywords", keywords, "--workers", 2) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["statistics.json", "statistics.safetensors"]
    tensors, summary = results(tmp_path / "out")

    captions = ["a dog", "a cat and a dog", "dog " * 80, "a dog", "a cat", "a dog"]
    assert torch.equal(tensors["frequency"], frequency(captions)) and tensors["documents"].tolist() == [6]
    assert tensors["frequency"][encode("dog")[0]] == 5 and tensors["frequency"].dtype == torch.int64

    assert summary["samples"] == 6 and summary["duplicate_keys"] == 1
    assert summary["documents"] == {
        "kinds": ["raw", "short", "long"], "count": 6, "duplicates": 2, "vocabulary_used": 4
    }  # fmt: skip
    assert summary["unusable"] == {"undecodable_image": 1, "json_is_not_an_object": 1, "no_image": 1}
    shares = {field: (numbers["share"], numbers["per_sample"]) for field, numbers in summary["fields"].items()}
    assert shares == {
        field: pytest.approx(numbers)
        for field, numbers in {
            "raw": (2 / 6, 2 / 6), "short": (1 / 6, 2 / 6), "long": (2 / 6, 2 / 6), "regions": (1 / 6, 2 / 6),
            "vqa": (1 / 6, 1 / 6),
        }.items()
    }  # fmt: skip
    assert summary["images"] == {
        "width": {"smallest": 7, "5%": 7, "median": 20, "95%": 50, "largest": 50},
        "height": {"smallest": 9, "5%": 9, "median": 10, "95%": 60, "largest": 60},
        "formats": {"JPEG": 3, "PNG": 1},
    }
    assert summary["captions"]["long"]["histogram"] == {"4": 1, "82": 1}
    assert summary["captions"]["long"]["cut_share"] == 0.5 and summary["captions"]["short"]["cut_share"] == 0
    assert summary["captions"]["short"]["tokens"] == {
        "mean": 5.5, "smallest": 4, "5%": 4, "median": 4, "95%": 7, "largest": 7
    }  # fmt: skip
    assert [tuple(row.values()) for row in summary["keywords"]] == [
        ("dog", 5, pytest.approx(500 / 6)), ("cat + dog", 1, pytest.approx(100 / 6)), ("hen", 0, 0)
    ]  # fmt: skip

    printed = capsys.readouterr().out
    assert "6 samples, 1 of them with a key that came before" in printed
    assert "no_image 1" in printed and "JPEG 3, PNG 1" in printed
    rows = {cells[0]: cells[1:] for line in printed.splitlines() if (cells := line.replace("│", " ").split())}
    assert rows["cut"] == ["at", "77", "0.0%", "0.0%", "50.0%"]
    assert rows["regions"] == ["16.7%", "0.33"] and rows["width"] == ["7", "7", "20", "50", "50"]
    assert rows["dog"] == ["5", "83.33333"] and rows["hen"] == ["0", "0.00000"]


def test_one_kind_of_captions_and_other_fields(shards: Path, tmp_path: Path) -> None:
    arguments = ("--captions", "short", "--fields", "short=long,txt", "raw=short", "--workers", 1)
    assert run_tool(TOOL, shards / "0.tar", "--out", tmp_path, *arguments, "--context-length", 8) == 0
    tensors, summary = results(tmp_path)
    assert torch.equal(tensors["frequency"], frequency(["dog " * 80, "a dog"])) and tensors["documents"] == 2
    assert summary["captions"]["raw"]["count"] == 2 and summary["captions"]["short"]["cut_share"] == 0.5
    assert summary["fields"]["short"]["share"] == pytest.approx(2 / 3) and summary["context_length"] == 8


def test_the_demo_set_of_the_platform(tiny_shards: Path, tmp_path: Path, tiny_recipe) -> None:
    """Every training scene has everything, and static IDF takes the file."""
    pattern = f"{tiny_shards}/train-*.tar"
    assert run_tool(TOOL, pattern, pattern, "--out", tmp_path, "--captions", "long", "--workers", 2) == 0
    tensors, summary = results(tmp_path)
    raws = [raw for shard in sorted(tiny_shards.glob("train-*.tar")) for raw in read_shard(str(shard))]
    annotations = [json.loads(raw["json"]) for raw in raws] * 2
    longs = [item["long"] for item in annotations]
    captions = list(chain.from_iterable(text if isinstance(text, list) else [text] for text in longs))
    assert torch.equal(tensors["frequency"], frequency(captions)) and tensors["documents"] == len(captions)
    assert summary["samples"] == 192 and summary["duplicate_keys"] == 96
    assert summary["documents"]["duplicates"] == len(captions) - len(set(captions)) >= len(captions) / 2
    assert all(numbers["share"] == 1 for numbers in summary["fields"].values())
    regions = np.mean([len(item["regions"]) for item in annotations])
    assert summary["fields"]["regions"]["per_sample"] == pytest.approx(regions)
    assert summary["images"]["width"]["smallest"] == summary["images"]["height"]["largest"] == 64
    file = f"objectives.classification.idf_file={tmp_path}/statistics.safetensors"
    assert tiny_recipe("superclip", "objectives.classification.idf=static", file)


def test_a_shard_that_cannot_be_read_is_not_counted(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlp.data.shards.RETRY_SECONDS", ())
    (tmp_path / "cut.tar").write_bytes((shards / "0.tar").read_bytes()[:6000])
    out = tmp_path / "out"
    assert run_tool(TOOL, shards / "1.tar", tmp_path / "cut.tar", "--out", out, "--workers", 1) == 1
    tensors, summary = results(out)
    assert summary["samples"] == 3 and torch.equal(tensors["frequency"], frequency(["a cat", "a dog"]))
    assert len(summary["failed_shards"]) == 1 and "cut.tar: not a readable tar shard" in summary["failed_shards"][0]
    assert "not counted: " in capsys.readouterr().out

    assert run_tool(TOOL, tmp_path / "cut.tar", "--out", tmp_path / "none") == 2
    assert "no caption was found among 0 samples" in capsys.readouterr().err
    assert not list((tmp_path / "none").iterdir())


# ---- caption files ----------------------------------------------------------------------------------------------

# training reads a control character as a space, which open_clip alone would drop
CAPTIONS = ["A dog, a\x00 cat", "  two\tdogs  ", 'he said "dog"', "犬 & café", "dog " * 90, "A dog, a\x00 cat"]


def write_files(folder: Path) -> dict[str, list]:
    """The same captions in all formats, an empty one and one that is none among them, and the arguments for each."""
    lines = "\n".join([*CAPTIONS[:3], "", *CAPTIONS[3:]])
    (folder / "unix.txt").write_bytes(lines.encode())
    (folder / "windows.txt").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode() + b"\r\n")
    (folder / "packed.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "packed.txt.bz2").write_bytes(bz2.compress(lines.encode()))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["url", "caption"], *([str(n), text] for n, text in enumerate([*CAPTIONS, ""]))])
    rows = [{"text": CAPTIONS[:2]}, {"text": CAPTIONS[2], "more": CAPTIONS[3]}, {"more": CAPTIONS[4:]}, {"more": ""}]
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n[1]\n")
    parquet.write_table(pyarrow.table({"caption": [*CAPTIONS, None, ""]}), folder / "table.parquet")
    names = ["unix.txt", "windows.txt", "packed.txt.gz", "packed.txt.bz2", "table.csv", "table.parquet"]
    return {name: [] for name in names} | {"lists.jsonl": ["--column", "text", "more"]}


def test_the_same_call_again_counts_what_is_left(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, out = CountSettings(combinations=tuple(read_combinations("appendix"))), tmp_path / "out"
    names = [str(path) for path in sorted(shards.glob("*.tar"))]
    whole, repeats = gather_shards(names, settings, tmp_path / "whole", workers=1)
    counted: list[str] = []

    def stopped_by(shard: str | None):
        def count(name: str, settings: CountSettings) -> Statistics:
            if name == shard:
                raise KeyboardInterrupt
            counted.append(name)
            return count_shard(name, settings)

        monkeypatch.setattr(gathering, "count_shard", count)

    stopped_by(names[-1])
    with pytest.raises(KeyboardInterrupt):
        gather_shards(names, settings, out, workers=1)
    stopped_by(None)
    again, again_repeats = gather_shards(names, settings, out, workers=1)
    assert counted == names
    assert (again.frequency_V == whole.frequency_V).all() and again_repeats == repeats
    assert (again.samples, again.documents, again.tokens) == (whole.samples, whole.documents, whole.tokens)
    gather_shards(names, CountSettings(context_length=20), out, workers=1)
    assert counted == names * 2  # other settings are counted anew
    forget_parts(names, settings, out)
    assert len(list(out.iterdir())) == 1


def test_caption_files_of_every_format(tmp_path: Path) -> None:
    expected = frequency([text.replace("\0", " ") for text in CAPTIONS])
    for name, arguments in write_files(tmp_path).items():
        out = tmp_path / f"out-{name}"
        assert run_tool(TOOL, tmp_path / name, "--out", out, "--workers", 1, *arguments) == 0, name
        tensors, summary = results(out)
        assert torch.equal(tensors["frequency"], expected) and tensors["documents"] == len(CAPTIONS), name
        assert summary["captions"]["file"]["count"] == 6 and summary["documents"]["duplicates"] == 1
        assert summary["unusable"]["empty_caption"] == 1
        assert summary["samples"] == 0 and summary["fields"] == {} and summary["images"] == {"formats": {}}
        assert summary["unusable"].get("no_caption", 0) == {"lists.jsonl": 3, "table.parquet": 1}.get(name, 0)


def test_the_appendix_over_two_files_and_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More lines than a piece holds; every count is a multiple of those of the few different ones."""
    few = ["a cat in a car", "an orange cat, a car", "Man fixes tie", "nothing here"]
    times = 15_000
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n".join(few * times) + "\n")
    arguments = ("--keywords", "appendix", "--workers", 2)
    assert run_tool(TOOL, f"{tmp_path}/*.txt", "--out", tmp_path / "out", *arguments) == 0
    tensors, summary = results(tmp_path / "out")
    assert tensors["documents"] == 8 * times and torch.equal(tensors["frequency"], 2 * times * frequency(few))
    assert summary["documents"]["duplicates"] == 8 * times - 4
    found = {row["combination"]: row["captions"] for row in summary["keywords"] if row["captions"]}
    assert found == {
        "cat + car": 4 * times, "cat + car + orange/grey": 2 * times, "man + tie": 2 * times,
        "man + tie + fix(es/ing)": 2 * times,
    }  # fmt: skip
    printed = capsys.readouterr()
    assert [f"appendix, Table {number}" in printed.out for number in (1, 2, 3, 4)] == [True] * 4
    rows = {cells[0].strip(): cells[1:] for line in printed.out.splitlines() if len(cells := line.split("│")[1:-1]) > 1}
    assert [cell.strip() for cell in rows["cat + car"]] == ["60000", "50.00000", "216", "0.00216"]
    assert [cell.strip() for cell in rows["man + tie + fix(es/ing)"]] == ["30000", "25.00000", "0", "0.00000"]
    size = 2 * len("\n".join(few * times)) // 1_000_000
    assert f"statistics: {size}/{size}" in printed.err


def test_pieces_are_whole_lines_and_say_how_far_they_are(tmp_path: Path) -> None:
    lines = [f"caption {number} " + "x" * (number % 50) for number in range(100_000)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:60_000]))
    (tmp_path / "b.txt").write_text("\n".join(lines[60_000:]) + "\n")
    paths = caption_files([f"{tmp_path}/?.txt"])
    pieces = list(read_pieces(paths, [], Counter()))
    assert len(pieces) > 3 and [text for piece in pieces for text in piece.texts] == lines
    assert sum(piece.megabytes for piece in pieces) == sum(path.stat().st_size for path in paths) // 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/unix.txt", "{}/0.tar"], "unix.txt is a caption file, .*0.tar is none; give either"),
        (["{}/missing.txt"], "missing.txt matches no file"),
        (["{}/missing.tar"], "matches no shard"),
        (["{}/unix.txt", "--captions", "long"], "caption files have no kinds; choose by --column"),
        (["{}/table.csv", "--column", "captoin"], "no column 'captoin'; did you mean 'caption'"),
        (["{}/unix.txt", "--workers", "0"], "--workers 0: give 1 or more"),
        (["{}/unix.txt", "--context-length", "2"], "--context-length 2: give 3 or more"),
        (["{}/unix.txt", "--keywords", "apendix"], "--keywords apendix: cannot be read"),
        (["{}/unix.txt", "--fields", "sort=a"], "--fields sort=a: give KIND=KEY with KIND raw, short"),
        (["{}/unix.txt", "--fields", "vqa=a,b"], "--fields vqa=a,b: vqa is one key"),
        (["{}/empty.txt"], "no caption was found"),
        (["{}/cut.txt.gz"], "cut.txt.gz: cannot be read"),
        (["{}/unix.txt", "--out", "{}/unix.txt/out"], "--out .*unix.txt/out cannot be written"),
    ],
)
def test_what_the_user_gave_wrong(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path)
    (tmp_path / "0.tar").touch()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "cut.txt.gz").write_bytes((tmp_path / "packed.txt.gz").read_bytes()[:40])
    given = [text.format(tmp_path) for text in arguments]
    assert run_tool(TOOL, "--out", tmp_path / "out", *given) == 2
    error = capsys.readouterr().err
    assert re.search(f"^error: .*{message}", error, re.MULTILINE), error
    assert not list((tmp_path / "out").glob("*"))


@given(st.lists(st.integers(0, 30), min_size=1), st.floats(0, 1))
def test_quantiles_are_values_that_occur(values: list[int], share: float) -> None:
    expected = np.quantile(values, share, method="inverted_cdf")
    assert quantile(Counter(values), share) == expected
