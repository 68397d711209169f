"""The posterior of a cleaner state is what Bayes' rule gives on every schedule."""

import itertools

import pytest
import torch

from flowlib import paths

ALL = sorted(paths.SCHEDULES)
TIMES = list(itertools.combinations([0.02, 0.2, 0.45, 0.7, 0.97], 2))


def tensors(t: float, u: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(t, dtype=torch.float64), torch.tensor(u, dtype=torch.float64)


@pytest.mark.parametrize(("t", "u"), TIMES)
@pytest.mark.parametrize("name", ALL)
def test_posterior_equals_brute_force_conditioning(name: str, t: float, u: float) -> None:
    """Condition the joint normal of (x_u, x_t) given x1, where x_t is x_u with forward noise, on x_t."""
    path = paths.by_name(name)
    alpha, sigma = path.schedule.alpha, path.schedule.sigma
    t, u = tensors(t, u)
    x1, xt = 0.7, -1.3
    rate = alpha(t) / alpha(u)
    added = sigma(t) ** 2 - rate**2 * sigma(u) ** 2
    assert added > 0
    mean = torch.stack([alpha(u) * x1, rate * alpha(u) * x1])
    mix = torch.stack([torch.stack([sigma(u), 0 * t]), torch.stack([rate * sigma(u), added.sqrt()])])
    joint = mix @ mix.T
    gain = joint[0, 1] / joint[1, 1]
    a, b, variance = path.posterior(t, u)
    torch.testing.assert_close(a * xt + b * x1, mean[0] + gain * (xt - mean[1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, joint[0, 0] - gain * joint[0, 1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("t", "u"), TIMES)
@pytest.mark.parametrize("name", ALL)
def test_posterior_keeps_the_marginals(name: str, t: float, u: float) -> None:
    """If x_t has the law of the path given x1, so has a draw of the posterior."""
    schedule = paths.by_name(name).schedule
    t, u = tensors(t, u)
    a, b, variance = paths.by_name(name).posterior(t, u)
    torch.testing.assert_close(a * schedule.alpha(t) + b, schedule.alpha(u), rtol=1e-12, atol=1e-12)
    spread = a**2 * schedule.sigma(t) ** 2 + variance
    torch.testing.assert_close(spread, schedule.sigma(u) ** 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_posteriors_compose(name: str) -> None:
    """A step from t to u and one from u to w make the step from t to w."""
    path = paths.by_name(name)
    t, u, w = (torch.tensor(s, dtype=torch.float64) for s in (0.2, 0.5, 0.8))
    (a1, b1, v1), (a2, b2, v2), (a, b, v) = path.posterior(t, u), path.posterior(u, w), path.posterior(t, w)
    torch.testing.assert_close(
        torch.stack([a2 * a1, a2 * b1 + b2, a2**2 * v1 + v2]), torch.stack([a, b, v]), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_posterior_is_finite_at_both_ends(name: str) -> None:
    path = paths.by_name(name)
    sigma, alpha = float(path.schedule.sigma(torch.tensor(0.5))), float(path.schedule.alpha(torch.tensor(0.5)))
    assert [float(c) for c in path.posterior(0.0, 0.5)] == pytest.approx([0, alpha, sigma**2], abs=1e-6)
    assert [float(c) for c in path.posterior(0.5, 1.0)] == [0, 1, 0]
    assert [float(c) for c in path.posterior(0.0, 1.0)] == [0, 1, 0]


def test_posterior_broadcasts_times() -> None:
    a, b, variance = paths.vp().posterior(torch.tensor([0.1, 0.2]), 0.5)
    assert a.shape == b.shape == variance.shape == (2,)


@pytest.mark.bad_input
def test_times_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="t must be before u"):
        paths.linear().posterior(0.5, 0.5)
    with pytest.raises(ValueError, match=r"u must lie in \[0, 1\]"):
        paths.linear().posterior(0.5, 1.5)
