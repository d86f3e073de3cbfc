"""Which parameters decay, and the learning rate of a step."""

import math

import pytest
import torch

from vlp.engine.optimizer import learning_rate, make_optimizer
from vlp.objectives.graph import ObjectiveGraph
from vlp.recipe import load_recipe
from vlp.settings import TrainSettings

SETTINGS = TrainSettings(steps=100, warmup_steps=10, learning_rate=1e-3)


def test_warm_up_is_linear_and_ends_at_the_peak():
    rates = [learning_rate(step, SETTINGS) for step in range(10)]
    assert rates == pytest.approx([1e-3 * (step + 1) / 10 for step in range(10)])


def test_the_cosine_falls_from_the_peak_towards_zero():
    assert learning_rate(10, SETTINGS) == pytest.approx(1e-3)
    assert learning_rate(55, SETTINGS) == pytest.approx(5e-4)
    assert learning_rate(99, SETTINGS) == pytest.approx(5e-4 * (1 + math.cos(math.pi * 89 / 90)))
    falling = [learning_rate(step, SETTINGS) for step in range(10, 100)]
    assert falling == sorted(falling, reverse=True)


def test_a_schedule_of_warm_up_alone_never_divides_by_zero():
    settings = TrainSettings(steps=5, warmup_steps=5, learning_rate=1.0)
    assert [learning_rate(step, settings) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_every_trainable_parameter_is_in_one_group_and_only_matrices_decay(repository, tiny):
    graph = ObjectiveGraph(load_recipe(repository / "recipes/goldi_super.yaml", tiny))
    optimizer = make_optimizer(graph)
    decayed, spared = (group["params"] for group in optimizer.param_groups)
    names = {id(parameter): name for name, parameter in graph.named_parameters()}
    assert {names[id(p)] for p in (*decayed, *spared)} == {n for n, p in graph.named_parameters() if p.requires_grad}
    assert len(decayed) + len(spared) == len({id(p) for p in (*decayed, *spared)})
    spared_names = {names[id(p)] for p in spared}
    for wanted in (
        "balancer.log_variances",
        "model.logit_scale.log_scale",
        "model.logit_bias.bias",
        "model.vision.vit.pos_embed",
        "model.vision.vit.cls_token",
        "model.text.positional_embedding",
        "model.text.ln_final.weight",
    ):
        assert wanted in spared_names
    assert all(parameter.ndim >= 2 for parameter in decayed)
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert isinstance(optimizer, torch.optim.AdamW)
