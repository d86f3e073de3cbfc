"""How the objectives' losses become one total."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def uncertainty_total(losses: Tensor, log_variances: Tensor, weights: Tensor, present: Tensor, share: float) -> Tensor:
    """sum_k w_k (1/2 e^{-s_k} L_k + 1/2 s_k), s_k = log sigma_k^2, over those present [docs/method.md 3, Balancing].

    Args:
        losses, log_variances, weights, present: [n]; `losses` may be shares of the global losses.
        share: the part of the regulariser 1/2 s_k that goes with them, so that all shares add up to the formula.
    """
    return (weights * present * 0.5 * ((-log_variances).exp() * losses + share * log_variances)).sum()


class Balancer(nn.Module):
    """Fixed weights, or learned uncertainty (Kendall et al.) with fixed factors over whole terms (C22, C23)."""

    def __init__(self, weights: Mapping[str, float], kind: str):
        super().__init__()
        self.names = list(weights)
        self.register_buffer("weights", torch.tensor(list(weights.values())), persistent=False)
        self.log_variances = nn.Parameter(torch.zeros(len(weights))) if kind == "uncertainty" else None

    def forward(self, losses: Mapping[str, Tensor], present: Mapping[str, Tensor], share: float) -> tuple[Tensor, dict]:
        """This micro-batch's share of the total, and every objective's weight as it multiplies its loss.

        Args:
            losses: shares of the global losses; one that is not there counts as absent.
            present: bool, false for what the global batch has no sample of.
            share: one over the number of micro-batches of all ranks in the step.
        """
        absent = torch.zeros_like(next(iter(losses.values())))
        stacked = torch.stack([losses.get(name, absent) for name in self.names])
        there = torch.stack([present.get(name, absent).to(stacked) for name in self.names])
        if self.log_variances is None:
            return (self.weights * there * stacked).sum(), dict(zip(self.names, self.weights, strict=True))
        total = uncertainty_total(stacked, self.log_variances.to(stacked), self.weights, there, share)
        weights = self.weights * 0.5 * (-self.log_variances.detach()).exp()
        return total, dict(zip(self.names, weights, strict=True))
