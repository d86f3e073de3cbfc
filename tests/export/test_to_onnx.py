"""The ONNX file by the real ONNX Runtime against the trained model; what it says of itself; failures leave nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from random_run import run_tool, write_random_run
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from vlp.errors import UserError
from vlp.export.encoder import VisionEncoder
from vlp.export.onnx_encoder import open_session, run_onnx
from vlp.recipe import load_recipe
from vlp.run import load_run

TOOL, VERIFY = "export/to_onnx.py", "export/verify.py"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_runtime_agrees_with_the_trained_model(run: Path, exported: Path, batch: int) -> None:
    _, model = load_run(run)
    model.vision.vit.set_grad_checkpointing(False)
    pixels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
    found = run_onnx(open_session(exported / "model.onnx"), pixels)
    tokens = model.vision(pixels)
    _, (penultimate,) = model.vision.vit.forward_intermediates(pixels, indices=[1], output_fmt="NLC")
    expected = {
        "image_embed": normalize(model.image_projection(tokens[:, 0]), dim=-1),
        "patch_tokens": tokens[:, 1:],
        "penultimate_tokens": penultimate,
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == (batch, *value.shape[1:])
        np.testing.assert_allclose(found[name], value.numpy(), atol=2e-5, rtol=0)
    assert np.abs(found["patch_tokens"] - found["penultimate_tokens"]).max() > 0.1


def test_an_average_pooled_tower_agrees_too(tmp_path: Path, three_blocks: list[str]) -> None:
    run = write_random_run(tmp_path / "run", "clip", [*three_blocks, "model.vision.pooling=average"])
    assert run_tool(TOOL, run, "--out", tmp_path / "onnx", "--opset", 18) == 0
    _, model = load_run(run)
    pixels = torch.randn(3, 3, 32, 32)
    found = run_onnx(open_session(tmp_path / "onnx" / "model.onnx"), pixels)
    tokens = model.vision(pixels)
    assert tokens.shape[1] == 16
    embed = normalize(model.image_projection(tokens.mean(1)), dim=-1)
    np.testing.assert_allclose(found["image_embed"], embed.numpy(), atol=2e-5, rtol=0)
    np.testing.assert_allclose(found["patch_tokens"], tokens.numpy(), atol=2e-5, rtol=0)


def test_the_file_says_what_it_is(run: Path, exported: Path) -> None:
    assert sorted(file.name for file in exported.iterdir()) == [
        "model.onnx",
        "preprocessor_config.json",
        "vlp_export.json",
    ]
    recipe = load_recipe(run / "recipe.yaml")
    model = onnx.load(exported / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["preprocessing"]) == {
        "size": 32,
        "mean": list(recipe.data.mean),
        "std": list(recipe.data.std),
        "interpolation": "bicubic",
        "crop": "the largest centred square, resized to size x size",
    }
    assert list(json.loads(said["outputs"])) == [output.name for output in model.graph.output]
    assert (said["recipe"], said["step"], said["vlp_version"]) == ("goldi_super", "4", "0.1.0")
    assert len(said["recipe_hash"]) == 16
    assert model.opset_import[0].version == 20
    assert b"/vlp/" not in (exported / "model.onnx").read_bytes(), "no path of this machine"

    config = json.loads((exported / "preprocessor_config.json").read_text())
    assert config["image_processor_type"] == "CLIPImageProcessor"
    assert config["size"] == {"shortest_edge": 32}
    assert config["crop_size"] == {"height": 32, "width": 32}
    assert (config["resample"], config["image_mean"], config["image_std"]) == (
        3,
        [*recipe.data.mean],
        [*recipe.data.std],
    )


def test_a_perturbed_weight_fails_verification(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(VERIFY, exported, run) == 0
    assert "NO" not in capsys.readouterr().out
    other = tmp_path / "perturbed"
    shutil.copytree(run, other)
    state = load_file(run / "model.safetensors")
    state["vision.vit.blocks.2.mlp.fc1.weight"][3, 5] += 0.5
    save_file(state, other / "model.safetensors")
    assert run_tool(VERIFY, exported, other) == 1
    lines = capsys.readouterr().out.splitlines()
    verdict = {line.split()[0]: line.split()[-1] for line in lines[2:]}
    assert verdict == {"image_embed": "NO", "patch_tokens": "NO", "penultimate_tokens": "yes"}


def test_an_export_that_differs_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = VisionEncoder.forward

    def wrong(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        embed, patches, penultimate = right(self, pixels)
        return embed, patches * 1.001, penultimate

    monkeypatch.setattr(VisionEncoder, "forward", wrong)
    assert run_tool(TOOL, run, "--out", tmp_path / "onnx") == 1
    assert "differs from the trained model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_foreign_folders_are_refused_and_own_ones_replaced(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run_tool(TOOL, run, "--out", tmp_path) == 2
    assert "exists and is not an export of ours" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert run_tool(TOOL, run, "--out", tmp_path, "--force") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "model.onnx").write_bytes(b"old")
    assert run_tool(TOOL, run, "--out", tmp_path) == 0
    assert open_session(tmp_path / "model.onnx").get_providers() == ["CPUExecutionProvider"]
    assert not tmp_path.with_name(tmp_path.name + ".partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": 17}, "--opset 17: allowed are 18 to 23"),
        ({"run": "nowhere"}, "nowhere is no run: it has no recipe.yaml"),
        ({"overrides": ["data.validation=/nowhere/*.tar"]}, "data: '/nowhere/*.tar' matches no shard"),
        ({"recipe": ["model.vision.depth=1"]}, "model.vision.depth: 1 leaves no last but one block"),
        ({"recipe": ["objectives.contrastive=null"]}, "the recipe trains no image projection"),
    ],
)
def test_a_mistake_is_one_line_code_2_and_nothing_written(
    change: dict, message: str, run: Path, three_blocks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "recipe" in change:
        run = write_random_run(tmp_path / "run", "superclip", [*three_blocks, *change["recipe"]])
    before = list(tmp_path.iterdir())
    overrides, opset = change.get("overrides", []), change.get("opset", 20)
    assert run_tool(TOOL, change.get("run", run), *overrides, "--out", tmp_path / "onnx", "--opset", opset) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == before


def test_verification_of_no_export_and_of_a_broken_file(run: Path, tmp_path: Path, exported: Path) -> None:
    assert run_tool(VERIFY, tmp_path, run) == 2
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:1000])
    with pytest.raises(UserError, match="ONNX Runtime does not load it"):
        open_session(tmp_path / "model.onnx")
