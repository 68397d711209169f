"""Samplers of times follow their laws, and importance weights undo them."""

import math

import pytest
import torch
from scipy import stats

from flowlib import objectives


def test_uniform_times_are_uniform_on_their_interval() -> None:
    t = objectives.uniform(0.2, 0.7)(20_000, generator=torch.Generator().manual_seed(0)).t
    assert stats.kstest(t.numpy(), stats.uniform(0.2, 0.5).cdf).pvalue > 0.01


def test_low_discrepancy_times_are_uniform_one_by_one_and_evenly_spread_together() -> None:
    sampler, generator = objectives.low_discrepancy(0.2, 0.7), torch.Generator().manual_seed(0)
    draws = torch.stack([sampler(8, generator=generator, dtype=torch.float64).t for _ in range(4000)])
    for column in (0, 5):
        assert stats.kstest(draws[:, column].numpy(), stats.uniform(0.2, 0.5).cdf).pvalue > 0.01
    gaps = draws.sort(1).values.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.5 / 8))


def test_logit_normal_times_have_a_normal_logit() -> None:
    t = objectives.logit_normal(0.5, 1.3)(20_000, generator=torch.Generator().manual_seed(1)).t.double()
    assert stats.kstest(torch.logit(t).numpy(), stats.norm(0.5, 1.3).cdf).pvalue > 0.01


def test_importance_times_follow_their_density() -> None:
    times = objectives.importance(lambda t: 0.2 + t**2)(20_000, generator=torch.Generator().manual_seed(2))
    total = 0.2 + 1 / 3
    cdf = lambda t: (0.2 * t + t**3 / 3) / total
    assert stats.kstest(times.t.numpy(), cdf).pvalue > 0.01
    torch.testing.assert_close(times.weight, total / (0.2 + times.t**2), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("h", [lambda t: torch.ones_like(t), torch.sin, lambda t: torch.exp(3 * t)])
def test_importance_weights_make_the_mean_uniform(h) -> None:
    n = 50_000
    sampler = objectives.importance(lambda t: 0.1 + t**3, low=0.1, high=0.9)
    times = sampler(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = times.weight * h(times.t)
    grid = torch.linspace(0.1, 0.9, 20_001, dtype=torch.float64)
    expected = torch.trapezoid(h(grid), grid) / 0.8
    assert abs(float(values.mean() - expected)) < 4 * float(values.std()) / math.sqrt(n) + 1e-6


@pytest.mark.parametrize(
    "sampler", [objectives.uniform(), objectives.logit_normal(), objectives.importance(lambda t: 1 + t)]
)
def test_samplers_are_seeded_and_follow_the_dtype(sampler) -> None:
    a, b = (sampler(9, generator=torch.Generator().manual_seed(4), dtype=torch.float64) for _ in range(2))
    assert torch.equal(a.t, b.t)
    assert a.t.dtype == torch.float64
    assert ((a.t >= 0) & (a.t < 1)).all()


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(ValueError, match="need 0 <= low < high <= 1"):
        objectives.uniform(0.5, 0.5)
    with pytest.raises(ValueError, match="std must be positive"):
        objectives.logit_normal(0.0, 0.0)
    with pytest.raises(ValueError, match="density must be positive and finite"):
        objectives.importance(lambda t: t - 0.5)
    with pytest.raises(ValueError, match="need 0 <= low < high <= 1"):
        objectives.importance(lambda t: t, low=-0.1)


@pytest.mark.parametrize("low", [0.0, 1e-5, 0.001, 0.1, 0.3, 0.5])
def test_rounding_never_reaches_the_upper_end(low: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest draw in float32 stays below 1, where the score of an exact path is infinite."""
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), 1 - 2**-24))
    monkeypatch.setattr(torch, "randn", lambda n, **_: torch.full((n,), 40.0))
    monkeypatch.setattr(torch, "multinomial", lambda mass, n, **_: torch.full((n,), len(mass) - 1))
    for high in (0.9, 1.0):
        assert objectives.uniform(low, high)(1).t.item() < high
        assert objectives.importance(lambda t: 1 + t, low=low, high=high)(1).t.item() < high
    assert objectives.logit_normal()(1).t.item() < 1
