"""The student's size and parts, the logit scale's clamp, and the EMA teacher."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from vlp.models.decoder import Decoder
from vlp.models.ema import copy_student, update_teacher
from vlp.models.model import LogitBias, LogitScale, VisionLanguageModel
from vlp.objectives.graph import ObjectiveGraph
from vlp.recipe import load_recipe
from vlp.settings import DecoderSettings, TextSettings

RECIPES = Path(__file__).parents[2] / "recipes"
B16 = [
    "model.embed_dim=512",
    "model.vision={name: vit_base_patch16_clip_224, image_size: 224, patch_size: 16, width: 768, depth: 12, heads: 12}",
    "model.text={width: 512, layers: 12, heads: 8, context_length: 77}",
]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- sizes ------------------------------------------------------------------------------------------------------


def test_clip_b16_has_exactly_clips_parameters() -> None:
    with torch.device("meta"):
        graph = ObjectiveGraph(load_recipe(RECIPES / "clip.yaml", B16, world_size=1))
    assert count(graph) == 149_620_737
    assert count(graph.model.vision) == 85_799_424
    assert count(graph.model.logit_scale) == 1
    assert all(p.requires_grad for p in graph.parameters())


@pytest.mark.parametrize("scale", sorted(p.stem for p in (RECIPES / "scales").glob("*.yaml") if p.stem != "demo"))
def test_clip_at_every_large_scale(scale: str) -> None:
    with torch.device("meta"):
        graph = ObjectiveGraph(load_recipe(RECIPES / "clip.yaml", [f"scale={scale}"], world_size=1))
    # L/16 is L/14's 427,616,513 with 60 positions fewer and larger patches
    assert count(graph) == (427_739_393 if scale.endswith("l16") else 149_620_737)


def test_superclip_adds_norm_and_linear_head_alone() -> None:
    with torch.device("meta"):
        clip, superclip = (
            ObjectiveGraph(load_recipe(RECIPES / f"{name}.yaml", B16, world_size=1)) for name in ("clip", "superclip")
        )
    assert count(superclip) - count(clip) == 2 * 768 + 768 * 49_408 + 49_408


def test_clip_builds_nothing_else(tiny_recipe) -> None:
    graph = ObjectiveGraph(tiny_recipe("clip"))
    assert graph.teacher is None
    for part in ("decoder", "pooling", "patch_projection", "logit_bias"):
        assert not hasattr(graph.model, part)
    assert graph.model.text.text_projection.shape == (24, 16)
    assert graph.model.image_projection.bias is None


def test_projections(tiny_recipe) -> None:
    """Bias-free, std width^-1/2; patches take the second one, or share the first; the class token is no patch."""
    for name, separate in (("goldiclip", True), ("flair", False)):
        torch.manual_seed(0)
        recipe = tiny_recipe(name, "model.vision.width=256")
        model = VisionLanguageModel(recipe, {"image_projection", "patch_projection"})
        assert hasattr(model, "patch_projection") == separate
        tokens = torch.randn(2, 17, 256)
        patch_weight = (model.patch_projection if separate else model.image_projection).weight
        torch.testing.assert_close(model.image_embeds(tokens), tokens[:, 0] @ model.image_projection.weight.T)
        torch.testing.assert_close(model.patch_embeds(tokens), tokens[:, 1:] @ patch_weight.T)
        for projection in (model.image_projection.weight, patch_weight):
            assert projection.std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_decoder_at_the_papers_size() -> None:
    """8 layers, 8 heads, the projected patch tokens' width, MLP x 4, an untied bias-free head of CLIP's vocabulary."""
    with torch.device("meta"):
        decoder = Decoder(DecoderSettings(), 512, TextSettings())
    width, attention = 512, 4 * (512 * 512 + 512)
    mlp = 512 * 2048 + 2048 + 2048 * 512 + 512
    block = 2 * attention + mlp + 3 * 2 * width
    assert len(decoder.blocks) == 8
    assert count(decoder) == 8 * block + (512 * 512 + 512) + 2 * width + 49_408 * 512


# ---- logit scale and bias ---------------------------------------------------------------------------------------


def test_logit_scale_below_the_cap() -> None:
    scale = LogitScale(1 / 0.07, 100.0).double()
    assert scale.log_scale.shape == (1,)
    assert scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    for sign in (1.0, -1.0):
        scale.zero_grad()
        (sign * scale()).sum().backward()
        assert scale.log_scale.grad.item() == pytest.approx(sign / 0.07, rel=1e-6)


@pytest.mark.parametrize("past", [0.01, 2.0])
def test_logit_scale_past_the_cap(past: float) -> None:
    """The value is capped; only a gradient that lowers the scale passes."""
    scale = LogitScale(50.0, 100.0).double()
    nn.init.constant_(scale.log_scale, math.log(100) + past)
    assert scale().item() == pytest.approx(100.0)
    scale().sum().backward()  # a loss that falls with the scale: descent lowers it
    assert scale.log_scale.grad.item() == pytest.approx(100.0)
    scale.zero_grad()
    (-scale()).sum().backward()  # descent would raise it further
    assert scale.log_scale.grad.item() == 0.0
    with torch.no_grad():
        assert scale().item() == pytest.approx(100.0)


def test_logit_scale_comes_back_under_descent() -> None:
    scale = LogitScale(99.0, 100.0)
    optimizer = torch.optim.SGD(scale.parameters(), lr=1e-4)
    for sign, largest in ((-1, 100.0), (1, 99.0)):
        for _ in range(20):
            optimizer.zero_grad()
            (sign * scale()).sum().backward()
            optimizer.step()
            assert scale().item() <= 100.0 + 1e-4
        assert scale().item() <= largest + 1e-3


def test_logit_bias() -> None:
    bias = LogitBias(-10.0)
    assert bias.bias.shape == (1,)
    assert bias().item() == -10.0


def test_start_values_are_the_papers() -> None:
    model = load_recipe(RECIPES / "clip.yaml", world_size=1).model
    assert model.logit_scale == pytest.approx(1 / 0.07)
    assert model.logit_scale_max == 100
    assert model.teacher_momentum == 0.996


# ---- teacher ----------------------------------------------------------------------------------------------------


def test_ema_over_steps(tiny_recipe) -> None:
    """teacher <- m teacher + (1 - m) student, for every parameter that the teacher has; it takes no gradient."""
    torch.manual_seed(0)
    recipe = tiny_recipe("goldiclip")
    image = {"image_projection", "patch_projection", "pooling"}
    student, teacher = VisionLanguageModel(recipe, image | {"logit_scale"}), VisionLanguageModel(recipe, image)
    copy_student(teacher, student)
    values = {name: p.detach().double().clone() for name, p in student.named_parameters()}
    assert set(dict(teacher.named_parameters())) == {name for name in values if not name.startswith("logit")}
    momentum = 0.9
    for _ in range(4):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_teacher(teacher, student, momentum)
        for name, parameter in student.named_parameters():
            values[name] = momentum * values[name] + (1 - momentum) * parameter.detach().double()
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter.double(), values[name], rtol=1e-5, atol=1e-5)
        assert not parameter.requires_grad
        assert parameter.data_ptr() != student.get_parameter(name).data_ptr()


def test_a_float32_teacher_of_a_bfloat16_student_moves() -> None:
    student, teacher = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4)
    copy_student(teacher, student)
    start = teacher.weight.clone()
    with torch.no_grad():
        student.weight.add_(1.0)
    update_teacher(teacher, student, 0.996)
    expected = 0.996 * start + 0.004 * student.weight.float()
    torch.testing.assert_close(teacher.weight, expected, rtol=1e-6, atol=1e-7)
    assert teacher.weight.dtype == torch.float32
