"""Uncertainty balancing: formula, gradients, absent objectives, shares."""

import math

import pytest
import torch

from vlp.objectives.balancing import Balancer, uncertainty_total

LOSSES, START, WEIGHTS = [3.0, 0.25, 7.5, 1.0], [0.0, -1.3, 0.7, 2.0], [1.0, 2.0, 1.0, 0.5]


def naive_total(losses, log_variances, weights, present) -> float:
    """sum_k w_k [L_k / (2 sigma_k^2) + log sigma_k], sigma_k = e^{s_k / 2}."""
    total = 0.0
    for loss, s, weight, there in zip(losses, log_variances, weights, present, strict=True):
        sigma = math.exp(s / 2)
        total += weight * (loss / (2 * sigma**2) + math.log(sigma)) if there else 0.0
    return total


def tensors(*lists):
    return [torch.tensor(values, dtype=torch.float64) for values in lists]


@pytest.mark.parametrize("present", [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
def test_formula_and_gradient(present: list[int]) -> None:
    losses, s, weights, there = tensors(LOSSES, START, WEIGHTS, present)
    losses.requires_grad_()
    s.requires_grad_()
    total = uncertainty_total(losses, s, weights, there, 1.0)
    assert total.item() == pytest.approx(naive_total(LOSSES, START, WEIGHTS, present), rel=1e-12, abs=1e-12)
    total.backward()
    for k in range(4):
        # dL/ds = w (1/2 - 1/2 e^{-s} L), dL/dL = w e^{-s} / 2: the weight multiplies the whole term
        assert s.grad[k].item() == pytest.approx(
            present[k] * WEIGHTS[k] * 0.5 * (1 - math.exp(-START[k]) * LOSSES[k]), rel=1e-12
        )
        assert losses.grad[k].item() == pytest.approx(present[k] * WEIGHTS[k] * 0.5 * math.exp(-START[k]), rel=1e-12)


def test_a_factor_on_the_whole_term_is_not_cancelled_by_the_optimal_s() -> None:
    """C23: at the optimum s = log L, whatever the weight; a factor inside L would only move s."""
    losses, s, weights, there = tensors([3.0, 3.0], [math.log(3.0)] * 2, [1.0, 2.0], [1, 1])
    losses.requires_grad_()
    s.requires_grad_()
    uncertainty_total(losses, s, weights, there, 1.0).backward()
    assert s.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert (losses.grad[1] / losses.grad[0]).item() == pytest.approx(2.0)


def as_names(values) -> dict[str, torch.Tensor]:
    return dict(zip("abcd", values, strict=True))


def test_balancer_shares_add_up_over_three_splits() -> None:
    """The third micro-batch has nothing for `b`; the global batch has nothing at all for `d`."""
    balancer = Balancer(as_names(WEIGHTS), "uncertainty").double()
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor(START))
    present = as_names(torch.tensor([True, True, True, False]))
    cut = torch.tensor([[0.5, 0.1, 2.5, 0.0], [1.5, 0.15, 1.0, 0.0], [1.0, 0.0, 4.0, 0.0]], dtype=torch.float64)
    shares = [balancer(as_names(part), present, share=1 / 3)[0] for part in cut]
    whole, weights = balancer(as_names(cut.sum(0)), present, share=1.0)
    expected = naive_total([3.0, 0.25, 7.5, 0.0], balancer.log_variances.tolist(), WEIGHTS, [1, 1, 1, 0])
    assert whole.item() == pytest.approx(expected, rel=1e-12)
    assert sum(shares).item() == pytest.approx(expected, rel=1e-12)
    first = torch.autograd.grad(sum(shares), balancer.log_variances)[0]
    second = torch.autograd.grad(whole, balancer.log_variances)[0]
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert first[3] == 0
    for name, weight, s in zip("abcd", WEIGHTS, balancer.log_variances.tolist(), strict=True):
        assert weights[name].item() == pytest.approx(weight * 0.5 * math.exp(-s))
        assert not weights[name].requires_grad


def test_fixed_weights() -> None:
    balancer = Balancer(as_names(WEIGHTS), "fixed").double()
    assert not list(balancer.parameters())
    losses = as_names(torch.tensor(LOSSES, dtype=torch.float64))
    total, weights = balancer(losses, as_names(torch.tensor([True, True, False, True])), share=1 / 3)
    assert total.item() == pytest.approx(3.0 + 2 * 0.25 + 0.5 * 1.0)
    assert [float(weights[name]) for name in "abcd"] == WEIGHTS


def test_starts_at_zero() -> None:
    balancer = Balancer({"a": 1.0, "b": 2.0}, "uncertainty")
    assert balancer.log_variances.tolist() == [0.0, 0.0]
