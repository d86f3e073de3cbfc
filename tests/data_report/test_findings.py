"""Planted defects: each is found, in the right number, with what to do about it."""

from pathlib import Path

import pytest
from planted import by_problem, check, make_recipe, picture, sample, write_shards

from vlp.data_report.findings import Finding
from vlp.data_report.tables import example, found, percent


def region(*box, **more) -> dict:
    return {"regions": [{"box": list(box), "phrase": "small cat"} | more]}


# ---- samples ----------------------------------------------------------------------------------------------------


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    report = check(make_recipe(write_shards(tmp_path, [sample(number) for number in range(40)])))
    assert report.findings == [] and report.errors == 0
    assert (report.samples, report.usable, report.shards, report.shards_read) == (40, 40, 2, 2)
    assert report.sides == {"under 64": 40}


@pytest.mark.parametrize("name", ["goldi_super", "flair", "cosmos", "locca", "clip", "silc"])
def test_a_demo_recipe_on_the_demo_set_has_no_errors(tiny_shards: Path, name: str) -> None:
    overrides = (f"data.train={tiny_shards}/train-*.tar", f"data.validation={tiny_shards}/validation-*.tar")
    report = check(make_recipe(tiny_shards, *overrides, name=name))
    assert report.samples == report.usable == 96
    assert not [finding for finding in report.findings if finding.severity in ("error", "warning")]
    assert report.coverage and all(row.have == row.of for row in report.coverage)


DEFECTS = {
    "caption_not_text": ({"short": ["a cat", 3]}, "warning", "captions: short", 'write strings'),
    "caption_empty": ({"short": ["a cat", " "]}, "warning", "captions: short", "drop them"),
    "caption_very_long": ({"short": "a cat " * 2000}, "warning", "captions: short", "data.fields"),
    "caption_control_characters": ({"long": "A cat\0. It sits."}, "warning", "captions: long", "where they come"),
    "caption_not_utf8": ({"long": "A caf\ufffd. It is."}, "warning", "captions: long", "UTF-8"),
    "box_in_pixels": (region(10, 20, 300, 200), "warning", "regions", "divide left and right by the picture's width"),
    "box_outside": (region(0.1, 0.1, 0.5, 1.2), "warning", "regions", "clip the edges to 0 and 1"),
    "box_reversed": (region(0.9, 0.1, 0.5, 0.8), "warning", "regions", "right = x + width"),
    "box_not_finite": (region(0.1, 0.1, 0.5, float("nan")), "warning", "regions", "drop these"),
    "box_not_four_numbers": (region(0.1, 0.1), "warning", "regions", "[left, top, right, bottom] as fractions"),
    "box_without_area": (region(0.1, 0.1, 0.1, 0.5), "warning", "regions", "drop these"),
    "box_tiny": (region(0.1, 0.1, 0.11, 0.5), "warning", "regions", "drop these"),
    "box_low_score": (region(0.1, 0.1, 0.9, 0.9, score=0.1), "note", "regions", "data.box_score"),
    "region_without_phrase": (region(0.1, 0.1, 0.9, 0.9, phrase=""), "warning", "regions", "tools/prepare_regions.py"),
    "question_without_answer": ({"vqa": [{"question": "why?"}]}, "warning", "questions", "tools/prepare_vqa.py"),
    "answer_not_text": ({"vqa": [{"question": "how many?", "answer": 3}]}, "warning", "questions", '"3", not 3'),
    "regions_not_list": ({"regions": {"box": [0, 0, 1, 1]}}, "warning", "samples", "tools/prepare_regions.py"),
    "vqa_not_list": ({"vqa": "what? a cat"}, "warning", "samples", "tools/prepare_vqa.py"),
}  # fmt: skip


@pytest.mark.parametrize("problem", DEFECTS)
def test_a_defect_of_the_annotations(tmp_path: Path, problem: str) -> None:
    record, severity, subject, mend = DEFECTS[problem]
    samples = [sample(number, record if number in (3, 8, 11) else None) for number in range(12)]
    finding = by_problem(check(make_recipe(write_shards(tmp_path, samples))))[problem]
    assert (finding.count, finding.severity, finding.subject) == (3, severity, subject)
    assert mend in finding.mend
    assert finding.key in ("k003", "k008", "k011")
    assert finding.shard == str(tmp_path / f"{int(finding.key[1:]) % 2}.tar")
    several = isinstance(record.get("short"), list)
    assert finding.of == 12 + 3 * several


@pytest.mark.parametrize(
    ("reason", "files"),
    [
        ("no_image", {"png": None}),
        ("undecodable_image", {"png": picture(1)[:60]}),
        ("unreadable_json", {"json": b'{"short": '}),
        ("json_is_not_an_object", {"json": b'["a cat"]'}),
    ],
)
def test_samples_that_are_skipped(tmp_path: Path, reason: str, files: dict) -> None:
    samples = [sample(number, **(files if number == 5 else {})) for number in range(10)]
    report = check(make_recipe(write_shards(tmp_path, samples), name="clip"))
    finding = by_problem(report)[reason]
    assert (finding.count, finding.of, finding.key, finding.severity) == (1, 10, "k005", "warning")
    assert report.usable == 9 and report.skipped == {reason: 1} and report.errors == 0


def test_too_many_skipped_samples_are_an_error(tmp_path: Path) -> None:
    samples = [sample(number, **({"png": b"none"} if number < 3 else {})) for number in range(10)]
    finding = by_problem(check(make_recipe(write_shards(tmp_path, samples))))["too_many_skipped"]
    assert (finding.severity, finding.count, finding.of) == ("error", 3, 10)
    assert "data.bad_share=0.2" in finding.what and "undecodable_image (3)" in finding.what
    assert "too_many_skipped" not in by_problem(check(make_recipe(tmp_path, "data.bad_share=0.3")))


# ---- what objectives read ---------------------------------------------------------------------------------------


def test_a_caption_kind_that_nobody_has(tmp_path: Path) -> None:
    record = {"long": None, "longSV_captions": "A cat. It sits.", "url": "http://cat"}
    report = check(make_recipe(write_shards(tmp_path, [sample(number, record) for number in range(10)])))
    finding = next(finding for finding in report.findings if finding.problem == "no_caption")
    assert finding.severity == "error" and finding.count == finding.of == 10
    assert finding.what == "no long caption, which classification reads; the sample is skipped"
    hint = (
        "data.fields.long the key that holds them (these samples also have longSV_captions), or data.fields=dreamlip, "
    )
    assert hint in finding.mend and finding.mend.endswith("; tools/prepare_captions.py joins captions from a table")
    mended = check(make_recipe(tmp_path, "data.fields.long=longSV_captions"))
    assert mended.errors == 0 and mended.usable == 10


def test_a_caption_kind_that_some_lack(tmp_path: Path) -> None:
    samples = [sample(number, {"short": []} if number == 1 else None) for number in range(10)]
    report = check(make_recipe(write_shards(tmp_path, samples)))
    finding = by_problem(report)["no_caption"]
    assert (finding.severity, finding.count, finding.of) == ("warning", 1, 10)
    assert "retrieval, distillation reads" in finding.what
    assert (finding.key, finding.shard) == ("k001", str(tmp_path / "1.tar"))
    rows = {(row.objective, row.reads): (row.have, row.of) for row in report.coverage}
    assert rows["retrieval", "shortx2"] == (9, 10) and rows["classification", "long"] == (10, 10)
    assert rows["vqa", "vqa"] == rows["distillation", "views"] == (10, 10)
    assert (report.usable, report.skipped) == (9, {"no_caption": 1})


def test_a_sample_without_captions_may_have_other_defects(tmp_path: Path) -> None:
    changes = {1: {"png": b"none"}, 2: {"json": b"[]"}}
    samples = [sample(number, {"short": None}, **changes.get(number, {})) for number in range(10)]
    report = check(make_recipe(write_shards(tmp_path, samples)))
    found = by_problem(report)
    assert report.skipped == {"no_caption": 9, "json_is_not_an_object": 1} and report.usable == 0
    assert (found["undecodable_image"].count, found["undecodable_image"].key) == (1, "k001")
    assert {(row.have, row.of) for row in report.coverage if row.reads in ("vqa", "referring", "views")} == {(8, 8)}


@pytest.mark.parametrize(("without", "severity"), [(2, "note"), (6, "warning"), (10, "error")])
def test_a_task_s_field(tmp_path: Path, without: int, severity: str) -> None:
    samples = [sample(number, {"vqa": None} if number < without else None) for number in range(10)]
    recipe = make_recipe(write_shards(tmp_path, samples))
    report = check(recipe)
    finding = next(finding for finding in report.findings if finding.problem == "no_task")
    assert (finding.severity, finding.count, finding.of) == (severity, without, 10)
    assert "nothing for vqa, which vqa reads" in finding.what
    assert int(finding.key[1:]) < without and finding.shard.endswith(f"{int(finding.key[1:]) % 2}.tar")
    assert "data.fields.vqa" in finding.mend and finding.mend.endswith("tools/prepare_vqa.py makes them from captions")
    assert (report.errors > 0) == (severity == "error")
    share = recipe.objectives["vqa"].share
    (row,) = [row for row in report.coverage if row.objective == "vqa"]
    assert row.images == pytest.approx(32 * share * (10 - without) / 10)


def test_boxes_under_another_name_are_named(tmp_path: Path) -> None:
    record = {"regions": None, "boxes": [{"box": [0, 0, 1, 1], "phrase": "cat"}]}
    report = check(make_recipe(write_shards(tmp_path, [sample(number, record) for number in range(6)])))
    errors = [finding for finding in report.findings if finding.severity == "error"]
    assert {finding.what.split(",")[0] for finding in errors} == {"nothing for referring", "nothing for grounded"}
    assert all("data.fields.regions" in error.mend and "also have boxes" in error.mend for error in errors)


def test_an_objective_that_gets_less_than_an_image_a_step(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(number) for number in range(6)])
    recipe = make_recipe(tmp_path, "objectives.vqa.share=0.02")
    finding = by_problem(check(recipe))["rare_task"]
    assert "vqa gets 0.64 images a step" in finding.what and "objectives.vqa.share" in finding.mend


def test_a_key_of_the_field_map_that_no_sample_has(tmp_path: Path) -> None:
    write_shards(tmp_path, [sample(number) for number in range(6)])
    finding = by_problem(check(make_recipe(tmp_path, "data.fields.short=[short, shorts]")))["unknown_key"]
    assert finding.severity == "note" and "'shorts', which data.fields.short names" in finding.what
    assert "did you mean 'short'?" in finding.mend


# ---- lengths, sentences, repeats, pictures ----------------------------------------------------------------------


def test_tokens_that_are_cut(tmp_path: Path) -> None:
    samples = [sample(number, {"long": "cat " * (76 if number < 4 else 75)}) for number in range(10)]
    report = check(make_recipe(write_shards(tmp_path, samples)))
    finding = by_problem(report)["caption_cut"]
    assert (finding.count, finding.of, finding.subject) == (4, 10, "drawn: long")
    assert "diverse" in finding.mend
    (long,) = [row for row in report.tokens if row.name == "long"]
    assert (long.cases, long.median, long.largest, long.cut) == (10, 77, 78, 4)


def test_answers_that_are_cut_or_lost(tmp_path: Path) -> None:
    questions = {0: ("what?", "cat " * 100), 1: ("cat " * 100, "yes"), 2: ("cat " * 100, "no")}
    pairs = {number: {"vqa": [{"question": q, "answer": a}]} for number, (q, a) in questions.items()}
    found = by_problem(check(make_recipe(write_shards(tmp_path, [sample(n, pairs.get(n)) for n in range(10)]))))
    assert (found["prompt_cut"].count, found["prompt_cut"].of, found["prompt_cut"].key) == (1, 10, "k000")
    assert (found["answer_lost"].count, found["answer_lost"].subject) == (2, "prompts: vqa")


def test_sentences(tmp_path: Path) -> None:
    long = {0: "...", 1: "cat " * 90, 2: "Cat. Dog. A big cow."}
    samples = [sample(number, {"long": [long[number]]} if number in long else None) for number in range(10)]
    flair = "objectives.retrieval={captions: diverse}", "data.fields.short=null", "data.fields.raw=null"
    recipe = make_recipe(write_shards(tmp_path, samples), *flair, name="flair")
    report = check(recipe)
    found = by_problem(report)
    assert (found["caption_without_sentence"].count, found["caption_without_sentence"].key) == (1, "k000")
    assert found["caption_in_one_sentence"].count == 1 and found["caption_in_one_sentence"].of == 10
    assert (found["sentence_of_one_word"].count, found["sentence_of_one_word"].of) == (2, 18)
    assert found["no_caption"].count == 1, "what splits into nothing cannot be drawn"
    (row,) = report.sentences
    assert (row.name, row.cases, row.largest) == ("long", 10, 3)


def test_boilerplate(tmp_path: Path) -> None:
    samples = [sample(number, {"short": "image unavailable"} if number < 6 else None) for number in range(30)]
    finding = by_problem(check(make_recipe(write_shards(tmp_path, samples))))["caption_repeated"]
    assert (finding.count, finding.of, finding.value) == (6, 30, "image unavailable")
    assert finding.severity == "warning" and "caption them anew" in finding.mend
    again = [sample(number, {"short": "a cat"} if number < 4 else None) for number in range(30)]
    (tmp_path / "few").mkdir()
    assert check(make_recipe(write_shards(tmp_path / "few", again))).findings == [], "four of thirty are chance"


def test_pictures(tmp_path: Path) -> None:
    files = {0: picture(0, (31, 40)), 1: picture(1, (200, 40)), 2: picture(9), 3: picture(9), 4: picture(9)}
    samples = [sample(n, png=files.get(n, picture(n, (300, 240)))) for n in range(20)]
    report = check(make_recipe(write_shards(tmp_path, samples)))
    found = by_problem(report)
    assert found["picture_small"].count == 1 and found["picture_small"].value == "31 x 40 pixels"
    assert found["picture_extreme_aspect"].key == "k001" and "max_aspect_ratio" in found["picture_extreme_aspect"].mend
    assert (found["picture_repeated"].count, found["picture_repeated"].severity) == (2, "warning")
    assert report.sides == {"under 64": 5, "64 to 127": 0, "128 to 223": 0, "224 to 335": 15}


def test_duplicate_keys(tmp_path: Path) -> None:
    samples = [sample(number) | {"__key__": "same" if number < 4 else f"k{number}"} for number in range(8)]
    finding = by_problem(check(make_recipe(write_shards(tmp_path, samples, shards=4), "data.streams=4")))[
        "duplicate_key"
    ]
    assert (finding.count, finding.of, finding.key, finding.severity) == (3, 8, "same", "warning")


# ---- in words ---------------------------------------------------------------------------------------------------


def test_counts_and_examples_in_words() -> None:
    finding = Finding("p", "note", "regions", "what", 3, 4000, "mend", "k\x1b", "a.tar", "[1]")
    assert found(finding) == "3 of 4,000 regions (under 0.1 %)" and example(finding) == "k\\x1b in a.tar: [1]"
    assert [percent(*pair) for pair in ((0, 9), (9, 9), (1, 3), (9999, 10_000))] == ["0 %", "100 %", "33.3 %", "99.9 %"]
