"""The exponential SDE steps: exact for an atom, ancestral at order one, moments of a Gaussian to the last digit."""

import itertools
import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, GaussianField, MixtureField


def field_on(path: paths.GaussianPath) -> MixtureField:
    return MixtureField(GaussianMixture(torch.tensor([[-1.0], [0.5]], dtype=torch.float64), 0.2), path)


@pytest.mark.parametrize("name", sorted(paths.SCHEDULES))
def test_order_one_with_all_noise_is_ancestral_sampling(name: str) -> None:
    field = field_on(paths.by_name(name))
    x0 = field.path.prior_std * torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = lambda: torch.Generator().manual_seed(1)
    ours = solvers.exponential_sde(field, x0, steps=12, generator=draw())
    theirs = solvers.ancestral(field, x0, steps=12, generator=draw())
    torch.testing.assert_close(ours.states, theirs.states, rtol=1e-9, atol=1e-9)
    assert ours.nfe == theirs.nfe == 12


@pytest.mark.parametrize(("order", "method"), [(1, "ddim"), (2, "dpmpp_2m")])
def test_without_noise_it_is_the_ode_solver(order: int, method: str) -> None:
    field = field_on(paths.cosine())
    x0 = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = solvers.exponential_sde(field, x0, steps=12, order=order, nu=0.0)
    torch.testing.assert_close(ours.states, solvers.ode(field, x0, steps=12, method=method).states)


def moments_at_end(monkeypatch, steps: int, order: int, nu: float, variance: float = 0.25) -> tuple[float, float]:
    """Variance at the end of the chain and the exact one: the chain is linear in the start and in every noise."""
    path = paths.vp()
    start, end = (float(path.schedule.time_of_log_snr(torch.tensor(2 * lam).double())) for lam in (-2.0, 2.5))
    field = GaussianField(torch.zeros(1, dtype=torch.float64), path, residual=variance)
    grid = solvers.clock_grid(path, steps, "log_snr", start=start, end=end)
    units = torch.eye(steps + 1, dtype=torch.float64)
    ends = path.schedule.alpha(grid[[0, -1]]) ** 2 * variance + path.schedule.sigma(grid[[0, -1]]) ** 2
    queue = iter(units[1:])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: next(queue)[:, None])
        x = solvers.exponential_sde(field, ends[0].sqrt() * units[0][:, None], times=grid, order=order, nu=nu).end
    return float(x.square().sum()), float(ends[1])


@pytest.mark.parametrize("nu", [0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_the_variance_of_a_gaussian_converges_with_the_order(order: int, nu: float, monkeypatch) -> None:
    errors = []
    for steps in (20, 40, 80, 160):
        found, exact = moments_at_end(monkeypatch, steps, order, nu)
        errors.append(abs(found - exact))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert sum(slopes) / 3 == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nu", [0.3, 1.0, 2.0])
def test_an_atom_keeps_its_exact_law(order: int, nu: float) -> None:
    path, n = paths.linear(), 20_000
    field = FunctionField(lambda x, t: torch.full_like(x, 0.7), path, predicts="data")
    x0 = torch.randn(n, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    times = torch.tensor([0.0, 0.2, 0.5, 0.8], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x = solvers.exponential_sde(field, x0, times=times, order=order, nu=nu, generator=generator).end
    assert abs(float(x.mean()) - 0.8 * 0.7) < 4 * 0.2 / math.sqrt(n)
    assert abs(float(x.var()) - 0.04) < 4 * 0.04 * math.sqrt(2 / n)


@pytest.mark.parametrize("order", [1, 2])
def test_the_last_step_lands_on_the_data_prediction_and_seeds_repeat(order: int) -> None:
    field = field_on(paths.linear())
    x0 = torch.randn(20, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    runs = [
        solvers.exponential_sde(field, x0, steps=9, order=order, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert torch.equal(runs[0].states, runs[1].states)
    torch.testing.assert_close(runs[0].end, field.data(runs[0].states[-2], runs[0].times[-2]))
    assert torch.isfinite(runs[0].states).all()
    short = solvers.exponential_sde(
        field, x0, steps=9, order=order, generator=torch.Generator().manual_seed(5), keep=False
    )
    assert torch.equal(short.end, runs[0].end)
    assert len(short) == 2


@pytest.mark.bad_input
def test_bad_input() -> None:
    field, x = field_on(paths.linear()), torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(TypeError, match="data prediction is needed"):
        solvers.exponential_sde(lambda x, t: x, x, steps=3)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        solvers.exponential_sde(field, x, steps=3, order=3)
    with pytest.raises(ValueError, match="nu must not be negative"):
        solvers.exponential_sde(field, x, steps=3, nu=-1.0)
    with pytest.raises(ValueError, match="times must increase"):
        solvers.exponential_sde(field, x, times=torch.tensor([0.9, 0.1]).double())
