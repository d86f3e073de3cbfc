"""AdamW's parameter groups, and the learning rate of a step."""

import math

import torch
from torch import nn

from vlp.objectives import REGISTRY
from vlp.objectives.graph import ObjectiveGraph
from vlp.recipe import Recipe
from vlp.settings import TrainSettings

_TABLES = ("pos_embed", "positional_embedding", "cls_token")


def make_optimizer(graph: ObjectiveGraph) -> torch.optim.AdamW:
    """AdamW over everything trainable. Weight decay spares what is no matrix (norms, biases, logit scale and bias,
    uncertainties), and the positional tables and class token [docs/method.md 1, Training].

    Each group says in `starts_at` from which share of the training its parameters are used at all: before, their
    rate is to be zero, or weight decay would shrink them.
    """
    settings = graph.recipe.train
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in graph.named_parameters():
        if parameter.requires_grad:
            is_spared = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _TABLES
            decay = 0.0 if is_spared else settings.weight_decay
            groups.setdefault((starts_at(name, graph.recipe), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "starts_at": start}
            for (start, decay), parameters in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up over `warmup_steps`, then half a cosine to zero at `steps`. `step` counts from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def starts_at(name: str, recipe: Recipe) -> float:
    """The share of the training after which an objective reads the graph's parameter of this name."""
    owner, part = name.split(".")[:2]
    if owner == "objectives":
        return recipe.objectives[part].starts_at
    readers = [
        settings
        for settings in recipe.objectives.values()
        if owner != "model" or part == "vision" or part in REGISTRY[settings.type].needs(recipe, settings).modules
    ]
    return min(settings.starts_at for settings in readers)
