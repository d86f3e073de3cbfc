"""AdamW's parameter groups, and the learning rate of a step."""

import math

import torch
from torch import nn

from vlp.settings import TrainSettings

_TABLES = ("pos_embed", "positional_embedding", "cls_token")


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over everything trainable. Weight decay spares what is no matrix (norms, biases, logit scale and bias,
    uncertainties), and the positional tables and class token [docs/method.md 1, Training]."""
    decayed, spared = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_table = name.rsplit(".", 1)[-1] in _TABLES
            (spared if parameter.ndim < 2 or is_table else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
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
