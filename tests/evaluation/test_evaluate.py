"""All tasks as one result, and the command line that prints it."""

import json
import shutil
from pathlib import Path

import pytest
from random_run import run_tool, write_random_run

from vlp.errors import UserError
from vlp.evaluation.evaluate import TASKS, evaluate
from vlp.run import load_run

TOOL = "tools/evaluate.py"


@pytest.fixture
def bare_shards(tiny_shards: Path, tmp_path: Path) -> Path:
    """The validation shards without the tables beside them."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for shard in tiny_shards.glob("validation-*.tar"):
        shutil.copy(shard, folder)
    return folder


def test_pictures_are_encoded_once_for_all_tasks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, model = load_run(run)
    seen: list[int] = []
    model.vision.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    result = evaluate(recipe, model)
    assert seen == [20, 20, 8]
    assert list(result) == ["samples", *TASKS, "seconds"]
    assert result["samples"] == 48
    assert list(result["retrieval"]) == ["short", "long"]
    for scorings in result["retrieval"].values():
        assert list(scorings) == ["agnostic", "conditioned"]
        assert scorings["agnostic"] != scorings["conditioned"]
        assert len(scorings["agnostic"]) == 6
    assert set(result["questions"]["conditioned"]) == {"count", "color", "attribute", "shape", "relation", "mean"}
    json.dumps(result)


def test_a_student_without_pooling_has_no_conditioned_scores(small: list[str], tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "clip", "clip", [*small, "model.vision.pooling=average"])
    result = evaluate(*load_run(run), list(TASKS))
    assert list(result["retrieval"]["short"]) == ["agnostic"]
    assert "conditioned" not in result["questions"]
    assert "pooling_without_sink" not in result["segmentation"]


def test_a_student_without_text_is_told_so(small: list[str], tmp_path: Path) -> None:
    run = write_random_run(tmp_path / "bare", "superclip", [*small, "objectives.contrastive=null"])
    recipe, model = load_run(run)
    assert "trains no image_projection" in evaluate(recipe, model)["retrieval"]["skipped"]
    for task in TASKS:
        with pytest.raises(UserError, match=rf"{task}: recipe 'superclip' trains no image_projection"):
            evaluate(recipe, model, [task])


@pytest.mark.parametrize(("task", "table"), [("questions", "questions"), ("segmentation", "classes")])
def test_a_missing_table_is_an_error_when_asked_for_and_a_note_otherwise(
    run: Path, bare_shards: Path, task: str, table: str
) -> None:
    recipe, model = load_run(run, [f"data.validation={bare_shards}/*.tar", f"evaluation.tasks=[{task}]"])
    message = f"{bare_shards}/{table}.json does not exist; expected there, or at evaluation.{table}=FILE: a JSON list"
    with pytest.raises(UserError, match=message):
        evaluate(recipe, model, [task])
    assert evaluate(recipe, model)[task]["skipped"].startswith(message)


def test_a_table_can_lie_elsewhere(run: Path, bare_shards: Path, tiny_shards: Path) -> None:
    where = [f"evaluation.questions={tiny_shards}/questions.json", f"evaluation.classes={tiny_shards}/classes.json"]
    recipe, model = load_run(run, [f"data.validation={bare_shards}/*.tar", *where])
    tasks = ["questions", "segmentation"]
    found = evaluate(recipe, model, tasks)
    beside = evaluate(*load_run(run), tasks)
    assert [found[task] for task in tasks] == [beside[task] for task in tasks]


def test_the_command_prints_tables_and_writes_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(TOOL, run, "evaluation.samples=30", "--task", "retrieval", "segmentation") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "retrieval (%)"
    assert lines[1].split("  ")[-1] == "I2T R@10"
    written = json.loads((run / "evaluation.json").read_text())
    assert list(written) == ["step", "samples", "retrieval", "segmentation", "seconds"]
    assert (written["step"], written["samples"]) == (4, 30)
    row = next(line for line in lines if "short conditioned" in line)
    assert f"{written['retrieval']['short']['conditioned']['text_to_image_r5']:.2f}" in row


def test_json_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    assert run_tool(TOOL, run, "--task", "questions", "evaluation.samples=40", "--json", path) == 0
    result = json.loads(path.read_text())
    assert result["questions"]["left_out"] > 0
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "retreival"], "--task retreival: no such task; did you mean 'retrieval'?"),
        (["model.embed_dim=8"], "override 'model.embed_dim=8': a trained run takes only data.validation"),
        (["data.validation=/nowhere/*.tar"], "data: '/nowhere/*.tar' matches no shard"),
        (["evaluation.sampels=3"], "unknown key 'evaluation.sampels'; did you mean 'samples'?"),
        (
            ["--json", "/proc/none/x.json", "evaluation.samples=2", "--task", "retrieval"],
            "cannot write /proc/none/x.json",
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_tool(TOOL, run, *arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_a_folder_that_is_no_finished_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(TOOL, tmp_path) == 2
    assert "is no run: it has no recipe.yaml" in capsys.readouterr().err
    shutil.copy(run / "recipe.yaml", tmp_path)
    assert run_tool(TOOL, tmp_path) == 2
    assert "has no model.safetensors yet" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:5000])
    assert run_tool(TOOL, tmp_path) == 2
    assert "not the weights of this run's recipe" in capsys.readouterr().err
