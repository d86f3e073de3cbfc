"""What balancing does with weights. Values and gradients: tests/parity."""

import pytest
import torch

from vlp.objectives.balancing import Balancer, uncertainty_total


def test_a_factor_on_the_whole_term_is_not_cancelled_by_the_optimal_s() -> None:
    """C23: at the optimum s = log L, whatever the weight; a factor inside L would only move s."""
    losses = torch.tensor([3.0, 3.0], dtype=torch.float64, requires_grad=True)
    s = losses.detach().log().requires_grad_()
    uncertainty_total(losses, s, torch.tensor([1.0, 2.0]), torch.ones(2), 1.0).backward()
    assert s.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert (losses.grad[1] / losses.grad[0]).item() == pytest.approx(2.0)


def test_fixed_weights() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.5}
    balancer = Balancer(weights, "fixed").double()
    assert not list(balancer.parameters())
    losses = dict(zip(weights, torch.tensor([3.0, 0.25, 7.5, 1.0], dtype=torch.float64), strict=True))
    present = dict(zip(weights, torch.tensor([True, True, False, True]), strict=True))
    total, logged = balancer(losses, present, share=1 / 3)
    assert total.item() == pytest.approx(3.0 + 2 * 0.25 + 0.5 * 1.0)
    assert {name: float(weight) for name, weight in logged.items()} == weights


def test_starts_at_zero() -> None:
    balancer = Balancer({"a": 1.0, "b": 2.0}, "uncertainty")
    assert balancer.log_variances.tolist() == [0.0, 0.0]
