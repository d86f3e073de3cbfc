"""Uncertainty balancing against Kendall's formula [docs/method.md 3, Balancing]."""

import pytest
import torch
from torch import Tensor, nn

from vlp.objectives.balancing import Balancer

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.5}


def naive_total(losses: Tensor, log_variances: Tensor, present: list[int]) -> Tensor:
    """sum_k w_k [L_k / (2 sigma_k^2) + log sigma_k] over those present, sigma_k = e^{s_k / 2} (C22, C23)."""
    total = 0 * losses.sum()
    for k, weight in enumerate(WEIGHTS.values()):
        sigma = (log_variances[k] / 2).exp()
        total = total + (weight * (losses[k] / (2 * sigma**2) + sigma.log()) if present[k] else 0)
    return total


@pytest.mark.parametrize("pieces", [[[1, 1, 1, 1]], [[0.5, 0.2, 0, 1], [0.2, 0.3, 0.7, 0], [0.3, 0.5, 0.3, 0]]])
@pytest.mark.parametrize("present", [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
def test_uncertainty_balancing(present: list[int], pieces: list[list[float]], leaf, compare) -> None:
    """Of whole losses, or of the shares that micro-batches have of them, some of which have none. The weights that are
    logged are what multiplies each loss."""
    balancer = Balancer(WEIGHTS, "uncertainty").double()
    nn.init.normal_(balancer.log_variances)
    losses, total = leaf(4, seed=1), 0.0
    there = dict(zip(WEIGHTS, torch.tensor(present, dtype=torch.bool), strict=True))
    for piece in pieces:
        shares = {name: part * loss for name, part, loss in zip(WEIGHTS, piece, losses, strict=True) if part}
        own, weights = balancer(shares, there, share=1 / len(pieces))
        total = total + own
    compare(total, naive_total(losses, balancer.log_variances, present), [losses, balancer.log_variances])
    (slopes,) = torch.autograd.grad(total, losses)
    logged = torch.stack(list(weights.values()))
    torch.testing.assert_close(slopes, logged * torch.tensor(present), rtol=1e-10, atol=1e-10)
    assert not logged.requires_grad
