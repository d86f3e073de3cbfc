"""A student that starts from the weights of another run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlp.errors import UserError
from vlp.models.initial import start_from
from vlp.models.model import VisionLanguageModel
from vlp.objectives.graph import ObjectiveGraph

MODULES = {"image_projection", "text", "logit_scale"}


@pytest.fixture
def finished(tiny_recipe, tmp_path: Path) -> tuple[Path, VisionLanguageModel]:
    """The folder of a run of `clip`, and its student."""
    torch.manual_seed(1)
    model = VisionLanguageModel(tiny_recipe("clip"), MODULES)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path, model


def mistake(model: nn.Module, path: Path) -> str:
    with pytest.raises(UserError) as raised:
        start_from(model, path)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith("model.init: ")
    return line


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_every_tensor_of_the_same_name_and_shape_is_taken(place: str, finished, tiny_recipe) -> None:
    """A student with another joint width and a bias: its projections and the bias keep their own values."""
    folder, given = finished
    torch.manual_seed(2)
    model = VisionLanguageModel(tiny_recipe("clip", "model.embed_dim=8"), MODULES | {"logit_bias"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = {"image_projection.weight", "text.text_projection", "logit_bias.bias"}
    assert start_from(model, folder / place) == (len(before) - len(own), len(before))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in own else given.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_student_and_teacher_of_a_recipe_start_from_it(finished, tiny_recipe) -> None:
    folder, given = finished
    graph = ObjectiveGraph(tiny_recipe("silc", f"model.init={folder}", "objectives.distillation.prototypes=8"))
    assert graph.initial == (len(given.state_dict()),) * 2
    for name, tensor in given.state_dict().items():
        assert torch.equal(graph.model.state_dict()[name], tensor), name
    for name, tensor in graph.teacher.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[name]), name


def test_a_locked_tower_needs_all_its_weights(finished, tiny_recipe) -> None:
    folder, given = finished
    locked = VisionLanguageModel(tiny_recipe("lit"), MODULES)
    assert start_from(locked, folder) == (len(given.state_dict()),) * 2
    weights = given.state_dict()
    del weights["vision.vit.norm.bias"]
    save_file(weights, folder / "model.safetensors")
    assert "has no vision.vit.norm.bias of the same shape" in mistake(locked, folder)
    other = VisionLanguageModel(tiny_recipe("lit", "model.vision.depth=3"), MODULES)
    assert "vision.vit.blocks.2" in mistake(other, folder)
    start_from(VisionLanguageModel(tiny_recipe("clip"), MODULES), folder)  # it may learn what it lacks


def test_weights_that_do_not_fit_at_all(finished) -> None:
    folder, _ = finished
    assert "no tensor of the same name and shape" in mistake(nn.Linear(3, 4), folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert "no safetensors file" in mistake(nn.Linear(3, 4), folder)


@pytest.mark.parametrize("name", ["", "runs/nothing", "other.safetensors"])
def test_a_missing_file_is_one_line_before_anything_is_built(name: str, tiny_recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        tiny_recipe("lit", f"model.init={tmp_path / name}")
    line = str(raised.value)
    assert "\n" not in line
    assert "lit.yaml: model.init: " in line
    assert "does not exist; give the folder of a finished run" in line
