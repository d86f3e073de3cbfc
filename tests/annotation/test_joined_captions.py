"""Captions joined to shards: caption files of every format, the index on disk, the join, and the command line."""

import bz2
import csv
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from random_run import run_tool

from vlp.annotation import caption_tables
from vlp.annotation.caption_index import CaptionSource, as_captions, as_key, build_index, index_facts, open_index
from vlp.annotation.caption_tables import read_table, table_columns
from vlp.annotation.captions import LAYOUTS, caption_source, make_join, prepare_index
from vlp.annotation.shards import Item
from vlp.data.captions import read_captions
from vlp.data.shards import read_shard
from vlp.errors import UserError
from vlp.settings import FieldMap

TOOL = "tools/prepare_captions.py"
DREAMLIP = ["raw_caption", *(f"{size}{model}_captions" for model in ("IB", "SV", "LLA") for size in ("short", "long"))]


def url(number: int) -> str:
    return f"https://example.org/a b/{number}.jpg?x=1,2"


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def write_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path: Path, *columns: str) -> tuple[list[tuple], Counter[str]]:
    bad: Counter[str] = Counter()
    return [row for chunk, _ in read_table(path, list(columns), bad) for row in chunk], bad


# ---- caption files ----------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_every_format_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    objects = [{"key": key, "text": text} for key, text in rows]
    paths = [
        write_csv(folder / "a.csv", [["text", "other", "key"]] + [[text, "", key] for key, text in rows]),
        write_csv(folder / "a.tsv", [["key", "text", "other"]] + [[*row, "x"] for row in rows], "\t"),
        write_lines(folder / "a.jsonl", objects),
        write_parquet(folder / "a.parquet", objects),
    ]
    for path in [*paths]:
        if path.suffix != ".parquet":
            paths += [path.with_name(path.name + ".gz"), path.with_name(path.name + ".bz2")]
            paths[-2].write_bytes(gzip.compress(path.read_bytes()))
            paths[-1].write_bytes(bz2.compress(path.read_bytes()))
    for path in paths:
        assert {"key", "text"} <= set(table_columns(path)), path.name
        assert read(path, "key", "text", "absent") == ([(*row, None) for row in rows], {}), path.name


def test_positions_grow_to_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_tables, "CHUNK", 10)
    objects = [{"key": str(number), "text": "x" * 3000} for number in range(95)]
    for path in (write_lines(tmp_path / "a.jsonl", objects), write_parquet(tmp_path / "a.parquet", objects)):
        chunks = list(read_table(path, ["key"], Counter()))
        positions = [position for _, position in chunks]
        assert [len(rows) for rows, _ in chunks] == [10] * 9 + [5]
        assert positions == sorted(positions) and len(set(positions)) > 5 and positions[-1] == path.stat().st_size


def test_bad_csv_rows_are_counted_and_the_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_tables, "LONGEST_FIELD", 50)
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b'\xef\xbb\xbfurl, text \r\n1,"two\nlines, and ""quotes"""\r\n2\r\n3,a,b\r\n\r\n4,caf\xe9\r\n5,nul\x00\r\n'
        + b'6,"a quote without its partner\n' + b"7,swallowed up to the longest field\n" * 2 + b"8,last\n"
    )  # fmt: skip
    assert table_columns(path) == ["url", "text"]
    rows, bad = read(path, "url", "text")
    assert rows[:3] == [("1", 'two\nlines, and "quotes"'), ("4", "caf�"), ("5", "nul\0")]
    assert rows[-1] == ("8", "last") and "6" not in dict(rows)
    assert bad == {"wrong_number_of_columns": 2, "unreadable_row": 1}


def test_bad_json_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    lines = ['{"k": "1", "t": "\\ud83d"}', "", '{"k": "2"', "[1]", '"text"', "[" * 100000, '{"k": 3, "t": ["a"]}']
    path = tmp_path / "bad.ndjson"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows, bad = read(path, "k", "t")
    assert rows == [("1", "\ud83d"), (3, ["a"])]
    assert bad == {"unreadable_json": 2, "json_is_not_an_object": 2}


def test_parquet_text_that_is_no_utf8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", None], pa.binary()).buffers())
    pq.write_table(pa.table({"text": broken, "url": ["1", "2"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "url", "text")[0] == [("1", "caf�"), ("2", None)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"[]", r"a.json: caption files are .csv, .tsv, .jsonl, .ndjson, .parquet, all but Parquet also"),
        ("a.parquet.gz", b"", "convert or rename the file"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"no line end" * 50)[:-10], "cannot be read .*end"),
        ("a.jsonl.gz", b"no gzip", "cannot be read .*gzip"),
        ("a.jsonl.bz2", b"no bzip2", "cannot be read"),
        ("a.csv", b"x" * (1 << 21), "cannot be read .*field larger"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        table_columns(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, "url")


# ---- cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "captions", "bad"),
    [
        (" a dog \n", ["a dog"], 0),
        ('["a dog", " ", "two"]', ["a dog", "two"], 0),
        ("[Illustration] a dog", ["[Illustration] a dog"], 0),
        ("[1]", ["[1]"], 0),
        ("[]", [], 0),
        (["a", None, "b", 3], ["a", "b"], 1),
        (b"a dog", ["a dog"], 0),
        ("", [], 0),
        (None, [], 0),
        (float("nan"), [], 0),
        ({"text": "a dog"}, [], 1),
    ],
)
def test_captions_of_a_cell(cell, captions: list[str], bad: int) -> None:
    counts: Counter[str] = Counter()
    assert as_captions(cell, counts) == captions
    assert counts["caption_is_no_text"] == bad


def test_keys_of_cells() -> None:
    cells = (" a b\n", "000012", 12, b"x", "\ud83d", "", "  ", None, True, 1.5)
    assert [as_key(cell) for cell in cells] == ["a b", "000012", "12", "x", "?", None, None, None, None, None]


# ---- the index --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(st.sampled_from("abcd"), TEXTS, TEXTS), max_size=12))
def test_the_index_gives_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    objects = [{"key": key, "one": [one], "two": {"is": "none"}, "three": [two]} for key, one, two in rows]
    path = write_lines(folder / "a.jsonl", objects)
    source = CaptionSource((path,), ("absent", "key"), {"raw": ("one",), "long": ("two", "three")})
    expected: dict[str, dict[str, list[str]]] = {}
    used = 0
    for key, one, two in rows:
        used += bool(one.strip() or two.strip())
        for kind, text in (("raw", one.strip()), ("long", two.strip())):
            if text:
                expected.setdefault(key, {}).setdefault(kind, []).append(text)
    if not expected:
        with pytest.raises(UserError, match="no row of the files has both a key and a caption"):
            build_index(source, folder / "index")
        assert [path.name for path in folder.iterdir()] == ["a.jsonl"]
        return
    build_index(source, folder / "index")
    look_up, facts = open_index(folder / "index"), index_facts(folder / "index")
    assert {key: look_up(key) for key in expected} == expected and look_up("e") == {}
    assert facts["keys"] == len(expected) and facts["rows"] == used
    assert facts["bad"].get("no_caption", 0) == len(rows) - used and facts["bad"]["caption_is_no_text"] == len(rows)


def test_an_index_is_used_again_until_the_files_or_the_columns_change(tmp_path: Path) -> None:
    file, folder = write_lines(tmp_path / "a.jsonl", [{"url": "1", "caption": "a", "short": "b"}]), tmp_path / "index"
    source = CaptionSource((file,), ("url",), {"raw": ("caption",)})
    first, _ = prepare_index(source, folder)
    made = first.stat().st_mtime_ns
    assert prepare_index(source, folder)[0] == first and first.stat().st_mtime_ns == made
    assert [path.name for path in folder.iterdir()] == [first.name]

    other = CaptionSource((file,), ("url",), {"short": ("short",)})
    assert open_index(prepare_index(other, folder)[0])("1") == {"short": ["b"]}
    file.write_text(file.read_text().replace('"a"', '"c"'))
    os.utime(file, ns=(made, made + 5))
    assert open_index(prepare_index(source, folder)[0])("1") == {"raw": ["c"]}
    assert open_index(first)("1") == {"raw": ["a"]}


def test_an_index_is_whole_or_not_there(tmp_path: Path) -> None:
    text = "".join(json.dumps({"url": str(i), "caption": os.urandom(40).hex()}) + "\n" for i in range(5000))
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(text.encode())[:-1000])
    source = CaptionSource((file,), ("url",), {"raw": ("caption",)})
    with pytest.raises(UserError, match=r"a.jsonl.gz: cannot be read \(Compressed file ended"):
        prepare_index(source, tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []
    with pytest.raises(UserError, match=r"cannot be written .* give a folder with room by --index"):
        prepare_index(source, file)
    source.index_path(tmp_path).write_text("no database, but long enough to be looked at as one" * 10)
    with pytest.raises(UserError, match=r"is no index of captions .* delete it"):
        prepare_index(source, tmp_path)


# ---- which columns ----------------------------------------------------------------------------------------------


def test_columns_of_several_files_and_layouts(tmp_path: Path) -> None:
    recaptions = write_csv(tmp_path / "a.csv", [["Image Path", "raw_caption", "longSV_captions", "width"]])
    prose = write_parquet(tmp_path / "b.parquet", [{"url": "u", "vlm_caption": "v", "status": "success"}])
    field, source = caption_source([recaptions, prose], "url", ["dreamlip", "pixelprose"], ["short=raw_caption"])
    assert (field, source.keys) == ("url", ("Image Path", "url"))
    assert source.columns == {
        "raw": ("raw_caption",), "short": ("raw_caption",), "long": ("longSV_captions", "vlm_caption")
    }  # fmt: skip
    field, source = caption_source([recaptions], "size=width, height", ["dreamlip"])
    assert (field, source.keys) == ("size", ("width",))


@pytest.mark.parametrize(
    ("by", "layouts", "columns", "message"),
    [
        ("url", [], [], r"a.csv: none of its columns is chosen; it has 'url', 'blip', 'text'. Name them, as --columns"),
        ("url", ["dreamlip"], [], "none of its columns is chosen"),
        ("url", [], ["raw=blib"], r"no file has 'blib'; did you mean 'blip'\?; columns: 'url', 'blip', 'text'"),
        ("url", [], ["rawr=text"], r"--columns rawr=text: write KIND=COLUMN.*raw, short, long; did you mean 'raw'"),
        ("url", [], ["raw="], "write KIND=COLUMN,COLUMN where KIND is raw, short, long$"),
        ("sha256", [], ["raw=text"], "no column sha256 to join by; .* as --by 'sha256=COLUMN'"),
        ("url=link,uri", [], ["raw=text"], "no column link or uri to join by"),
    ],
)
def test_columns_that_cannot_be(tmp_path: Path, by: str, layouts: list, columns: list, message: str) -> None:
    file = write_csv(tmp_path / "a.csv", [["url", "blip", "text"]])
    with pytest.raises(UserError, match=message):
        caption_source([file], by, layouts, columns)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no file; name the files themselves"):
        caption_source([tmp_path], "url", ["plain"])


# ---- the join ---------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rows = [
        {"id": "1", "raw": "alt", "short": ["a dog", "a dog", "dog"]},
        {"id": "1", "short": "hound", "long": ""},
        {"id": 2, "long": "A dog. It runs."},
    ]
    source = CaptionSource(
        (write_lines(tmp_path / "a.jsonl", rows),), ("id",), {kind: (kind,) for kind in ("raw", "short", "long")}
    )
    return prepare_index(source, tmp_path / "index")[0]


def test_new_captions_come_behind_those_that_are_there(index: Path) -> None:
    first = Item("0", {"txt": b"from the text file"}, {"id": 1, "short": "a dog", "width": 5})
    second = Item("1", {"txt": b"alt"}, {"id": "2", "raw": ["mine"], "long": [7, "", "Mine."]})
    rest = [Item("1", {}, {"id": "3"}), Item("2", {}, {"url": "1"}), Item("2", {}, {"id": ["1"]})]
    counts = make_join(index, "id")([first, second, *rest])
    assert first.annotations == {
        "id": 1, "raw": ["from the text file", "alt"], "short": ["a dog", "dog", "hound"], "width": 5
    }  # fmt: skip
    assert second.annotations == {"id": "2", "raw": ["mine"], "long": ["Mine.", "A dog. It runs."]}
    assert [item.annotations for item in rest] == [{"id": "3"}, {"url": "1"}, {"id": ["1"]}]
    assert counts == {
        "matched": 2, "unmatched": 1, "no_id": 2, "raw_captions": 3, "raw_new": 1,
        "short_captions": 3, "short_new": 2, "long_captions": 2, "long_new": 1,
    }  # fmt: skip


def test_replacing_touches_the_kinds_that_are_new(index: Path) -> None:
    item = Item("2", {"txt": b"alt"}, {"short": ["mine"], "long": "Mine."})
    counts = make_join(index, "key", replace=True)([item])
    assert item.annotations == {"short": ["mine"], "long": ["A dog. It runs."]}
    assert counts["long_captions"] == counts["long_new"] == counts["short_captions"] == 1 and counts["short_new"] == 0


# ---- the command line -------------------------------------------------------------------------------------------


def write_shards(folder: Path, shards: int = 2, samples: int = 4) -> Path:
    """Shards as img2dataset writes them."""
    folder.mkdir()
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as tar:
            for number in range(shard * samples, (shard + 1) * samples):
                about = {
                    "url": url(number), "key": f"{shard:05d}{number % samples:04d}", "sha256": f"{number:064x}",
                    "caption": f"alt {number}", "status": "success", "width": 640, "exif": "{}",
                }  # fmt: skip
                files = {"jpg": f"picture {number}".encode(), "txt": about["caption"].encode()}
                tar.write({"__key__": about["key"]} | files | {"json": json.dumps(about).encode()})
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards")


def joined(out: Path) -> list[dict]:
    return [json.loads(sample["json"]) for tar in sorted(out.glob("*.tar")) for sample in read_shard(str(tar))]


def dreamlip_csv(path: Path, numbers: range) -> Path:
    rows = [[url(n), f"alt {n}", *(f'{column} of {n},\n"quoted".' for column in DREAMLIP[1:])] for n in numbers]
    return write_csv(path, [["Image Path", *DREAMLIP], *rows])


def test_dreamlip_by_url(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = dreamlip_csv(tmp_path / "cc3m_3long_3short_1raw_captions_url.csv", range(1, 20))
    out = tmp_path / "out"
    assert run_tool(TOOL, f"{shards}/*.tar", "--captions", captions, "--layout", "dreamlip", "--out", out) == 0
    samples = joined(out)
    assert [read_captions(sample, FieldMap())["raw"] for sample in samples[1:]] == [[f"alt {n}"] for n in range(1, 8)]
    for size in ("short", "long"):
        expected = [f'{size}{model}_captions of 3,\n"quoted".' for model in ("IB", "SV", "LLA")]
        assert samples[3][size] == expected
    assert "short" not in samples[0] and samples[5]["sha256"] == f"{5:064x}"
    for name in ("00000.tar", "00001.tar"):
        before, after = (list(read_shard(str(folder / name))) for folder in (shards, out))
        for one, other in zip(before, after, strict=True):
            assert [one[key] for key in ("__key__", "jpg", "txt")] == [other[key] for key in ("__key__", "jpg", "txt")]
            assert json.loads(one["json"]).items() <= json.loads(other["json"]).items()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["matched"] == 7 and summary["unmatched"] == 1 and summary["samples"] == 8
    printed = capsys.readouterr().out
    for line in (
        "url = Image Path",
        "short += shortIB_captions, shortSV_captions, shortLLA_captions",
        "19 rows of captions with 19 keys (most rows of one key: 1)",
        "7 of 8 samples have captions now (87.5%)",
        "captions per matched sample: raw 1.00, short 3.00, long 3.00; new of these: raw 0.00, short 3.00, long 3.00",
        "at least 12 of the captions' 19 keys belong to none of these samples",
        f"not found, as '{url(0)}'",
        f"the captions' keys, as '{url(1)}', '{url(2)}', '{url(3)}'",
    ):
        assert line in printed.splitlines()


def test_recap_datacomp_by_sha256_and_pixelprose_by_key(shards: Path, tmp_path: Path) -> None:
    recap = [
        {"url": "gone", "re_caption": f"Re {n}.", "org_caption": f"alt {n}", "sha256": f"{n:064x}", "key": "x",
         "re_clip_score": 0.3} for n in range(8)
    ]  # fmt: skip
    file, out = write_parquet(tmp_path / "recap.parquet", recap), tmp_path / "out"
    assert run_tool(TOOL, shards / "*.tar", "--by", "sha256", "--layout", "recap_datacomp", "--captions", file,
                    "--out", out) == 0  # fmt: skip
    assert [(sample["raw"], sample["long"]) for sample in joined(out)] == [
        ([f"alt {n}"], [f"Re {n}."]) for n in range(8)
    ]

    prose = [
        {"uid": "u", "url": "gone", "key": f"{n // 4:05d}{n % 4:04d}", "status": "success",
         "original_caption": f"old {n}", "vlm_model": "m", "vlm_caption": f"Prose {n}."} for n in range(8)
    ]  # fmt: skip
    file, both = write_parquet(tmp_path / "prose.parquet", prose), tmp_path / "both"
    assert (
        run_tool(TOOL, out / "*.tar", "--by", "key", "--layout", "pixelprose", "--captions", file, "--out", both) == 0
    )
    assert joined(both)[6]["long"] == ["Re 6.", "Prose 6."] and joined(both)[6]["raw"] == ["alt 6", "old 6"]


def test_own_lines_by_a_field_with_columns(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"alt": "alt 2", "blip": ["b 2", "b 2", ""], "llava": "L 2."},
        {"alt": "alt 2", "blip": "b again"},
        {"blip": "x"},
    ]
    file, out = tmp_path / "own.jsonl.gz", tmp_path / "out"
    file.write_bytes(gzip.compress(write_lines(tmp_path / "own.jsonl", rows).read_bytes()))
    command = [
        TOOL,
        shards / "*.tar",
        "--by",
        "caption=alt",
        "--columns",
        "short=blip",
        "long=llava",
        "--captions",
        file,
    ]
    assert run_tool(*command, "--out", out, "--index", tmp_path / "index") == 0
    assert joined(out)[2] == {**joined(shards)[2], "short": ["b 2", "b again"], "long": ["L 2."]}
    assert len(list((tmp_path / "index").iterdir())) == 1 and not list(out.glob("*.sqlite"))
    printed = capsys.readouterr().out.splitlines()
    assert "2 rows of captions with 1 keys (most rows of one key: 2)" in printed and "left out: no_key 1" in printed


def test_a_join_that_matches_nothing_stops(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write_csv(tmp_path / "a.csv", [["url", "caption"], [f"x{url(1)}", "one"]]), tmp_path / "out"
    command = [TOOL, shards / "*.tar", "--layout", "plain", "--captions", file, "--out", out]
    assert run_tool(*command) == 2
    message = capsys.readouterr().err
    assert f"none of the 4 samples of the first shard has captions: their url is as '{url(0)}'" in message
    assert f"the captions' keys are as 'x{url(1)}'" in message and "--allow-unmatched" in message
    assert not list(out.glob("*.tar"))
    assert run_tool(*command, "--allow-unmatched") == 0
    assert joined(out) == joined(shards)
    assert "0 of 8 samples have captions now (0.0%)" in capsys.readouterr().out


def test_a_field_that_samples_lack_stops_before_the_index(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_csv(tmp_path / "a.csv", [["uid", "caption"], ["1", "one"]]), tmp_path / "out"
    assert run_tool(TOOL, shards / "*.tar", "--by", "uid", "--layout", "plain", "--captions", file, "--out", out) == 2
    message = capsys.readouterr().err
    assert "--by uid: the first 4 samples have no such field; their JSON has 'url', 'key', 'sha256'" in message
    assert not out.exists()


def test_only_shards_that_are_missing_are_made(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlp.data.shards.RETRY_SECONDS", ())
    captions, out = dreamlip_csv(tmp_path / "a.csv", range(8)), tmp_path / "out"
    whole = (shards / "00001.tar").read_bytes()
    (shards / "00001.tar").write_bytes(whole[:3000])
    command = [TOOL, shards / "*.tar", "--layout", "dreamlip", "--captions", captions, "--out", out]
    assert run_tool(*command) == 2
    assert "1 of 2 shards failed" in capsys.readouterr().err
    index = next(out.glob("captions-*.sqlite"))
    made = [path.stat().st_mtime_ns for path in (index, out / "00000.tar")]
    (shards / "00001.tar").write_bytes(whole)
    assert run_tool(*command) == 0
    assert [path.stat().st_mtime_ns for path in (index, out / "00000.tar")] == made
    assert "8 of 8 samples have captions now (100.0%)" in capsys.readouterr().out
    assert run_tool(*command, "--replace") == 2
    assert "holds shards made with replace=False, not True" in capsys.readouterr().err


def test_samples_without_captions_can_be_left_out(shards: Path, tmp_path: Path) -> None:
    captions, out = dreamlip_csv(tmp_path / "a.csv", range(2, 8)), tmp_path / "out"
    command = [TOOL, shards / "*.tar", "--layout", "dreamlip", "--captions", captions, "--drop-unmatched"]
    assert run_tool(*command, "--out", out) == 0
    assert [record["url"] for record in joined(out)] == [url(number) for number in range(2, 8)]
    assert json.loads((out / "summary.json").read_text())["dropped"] == 2


def test_help_names_the_layouts_and_needs_no_heavy_package(repository: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['prepare_captions.py', '--help']\n"
        f"try: runpy.run_path('{TOOL}', run_name='__main__')\n"
        "finally: print([name for name in ('torch', 'ray', 'pyarrow', 'webdataset') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stderr
    assert f"{{{','.join(LAYOUTS)}}}" in done.stdout
