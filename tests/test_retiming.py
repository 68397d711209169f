"""Every Gaussian path is a re-timed, rescaled copy of every other, and samplers of the common clock see no path."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from flowlib import nets, paths, solvers
from flowlib.distributions import Empirical, GaussianMixture
from flowlib.fields import FunctionField, MixtureField, NetworkField, RetimedField

PAIRS = list(itertools.permutations(sorted(paths.SCHEDULES), 2))
SMOOTH = ("linear", "cosine", "edm", "ve")


def mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    means = 1.5 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, root @ root.mT + 0.2 * torch.eye(2, dtype=torch.float64))


def path_named(name: str) -> paths.GaussianPath:
    return paths.mean_reverting(center=0.7, sigma_inf=0.8) if name == "mean_reverting" else paths.by_name(name)


def times_with_log_snr(path: paths.GaussianPath, low: float = -7.0, high: float = 8.0, n: int = 24) -> Tensor:
    return path.schedule.time_of_log_snr(torch.linspace(low, high, n, dtype=torch.float64))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / (1 + b.abs().max()))


@pytest.mark.parametrize(("name", "other"), PAIRS)
class TestEveryPair:
    def test_time_and_scale_match_both_coefficients(self, name: str, other: str) -> None:
        path, onto = path_named(name), path_named(other)
        t = times_with_log_snr(path)
        at = paths.retime(t, path, onto)
        for mine, theirs in ((path.schedule.alpha, onto.schedule.alpha), (path.schedule.sigma, onto.schedule.sigma)):
            torch.testing.assert_close(at.scale * theirs(at.time), mine(t), rtol=1e-11, atol=1e-13)

    def test_rates_are_the_derivatives(self, name: str, other: str) -> None:
        path, onto = path_named(name), path_named(other)
        t = times_with_log_snr(path).requires_grad_()
        at = paths.retime(t, path, onto)
        for value, rate in ((at.time, at.time_rate), (at.scale, at.scale_rate)):
            (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
            torch.testing.assert_close(rate, slope, rtol=1e-8, atol=1e-8)

    def test_there_and_back_is_the_identity(self, name: str, other: str) -> None:
        path, onto = path_named(name), path_named(other)
        t = times_with_log_snr(path)
        there = paths.retime(t, path, onto)
        back = paths.retime(there.time, onto, path)
        torch.testing.assert_close(back.time, t, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(back.scale * there.scale, torch.ones_like(t), rtol=1e-10, atol=0)

    def test_retimed_exact_field_is_the_exact_field(self, name: str, other: str) -> None:
        """All four predictions, from a field with closed forms and from one that only knows one prediction."""
        path, onto = path_named(other), path_named(name)  # the field lives on `other`, is asked on `name`
        exact, wanted = MixtureField(mixture(), path), MixtureField(mixture(), onto)
        t = times_with_log_snr(onto)
        x = wanted.sample(t.shape[0], 0.5, generator=torch.Generator().manual_seed(1))
        for own in paths.PREDICTIONS:
            single = FunctionField(exact.function(own), path, predicts=own)
            for field in (exact, single):
                seen = RetimedField(field, onto)
                for kind in paths.PREDICTIONS:
                    error = relative(getattr(seen, kind)(x, t), getattr(wanted, kind)(x, t))
                    assert error < 1e-10, (own, kind, error)


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(("linear", "cosine"), 2)))
def test_both_ends_are_exact(name: str, other: str) -> None:
    path, onto = path_named(name), path_named(other)
    at = paths.retime(torch.tensor([0.0, 1.0], dtype=torch.float64), path, onto)
    assert at.time.tolist() == [0.0, 1.0]
    assert at.scale.tolist() == [1.0, 1.0]
    ratio = math.pi / 2 if name == "cosine" else 2 / math.pi
    torch.testing.assert_close(at.time_rate, torch.full((2,), ratio, dtype=torch.float64))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x = torch.tensor([[1.0, -2.0], [0.5, 0.3]], dtype=torch.float64)
    seen, wanted = RetimedField(MixtureField(mixture(), onto), path), MixtureField(mixture(), path)
    torch.testing.assert_close(seen.velocity(x, ends), wanted.velocity(x, ends), rtol=1e-12, atol=1e-12)


def test_vp_is_the_linear_path_at_alpha_over_alpha_plus_sigma() -> None:
    """The lemma as the monograph states it: c = alpha + sigma, tau = alpha / c."""
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    schedule = paths.vp().schedule
    at = paths.retime(t, paths.vp(), paths.linear())
    torch.testing.assert_close(at.scale, schedule.alpha(t) + schedule.sigma(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(at.time, schedule.alpha(t) / at.scale, rtol=1e-12, atol=0)


def test_flow_of_vp_mapped_to_the_linear_path_is_the_linear_flow() -> None:
    """RK4 with 200 steps on each path; the linear flow starts at tau = alpha / (alpha + sigma), not at 0."""
    vp, linear = paths.vp(), paths.linear()
    grid = torch.linspace(0, 0.98, 201, dtype=torch.float64)
    at = paths.retime(grid, vp, linear)
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    on_vp = solvers.ode(MixtureField(mixture(), vp), x, times=grid, method="rk4").states
    start = x / at.scale[0]
    on_linear = solvers.ode(MixtureField(mixture(), linear), start, times=at.time, method="rk4").states
    assert float(at.time[0]) == pytest.approx(6.5e-3, abs=2e-4)
    assert float((on_vp / at.scale[:, None, None] - on_linear).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["cosine", "vp", "ve", "edm"])
def test_ddim_on_a_matched_grid_gives_the_same_samples_on_every_path(name: str) -> None:
    log_snr = torch.linspace(-7, 8, 9, dtype=torch.float64)
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def sample(path: paths.GaussianPath, method: str) -> Tensor:
        grid = path.schedule.time_of_log_snr(log_snr)
        start, end = path.schedule.sigma(grid[0]), path.schedule.alpha(grid[-1])
        field = RetimedField(MixtureField(mixture(), paths.linear()), path)
        return solvers.ode(field, start * z, times=grid, method=method, keep=False).end / end

    straight = sample(paths.linear(), "ddim")
    assert float((sample(path_named(name), "ddim") - straight).abs().max()) < 1e-11
    torch.testing.assert_close(sample(paths.linear(), "euler"), straight, rtol=1e-12, atol=1e-12)
    assert float((sample(path_named(name), "euler") - straight).abs().max()) > 0.1


def test_reverse_sde_is_the_same_process_on_every_path() -> None:
    """eta^2 / (sigma^2 dlogSNR/dt) is one for the reverse SDE and alpha for the damped one."""
    for name in (*SMOOTH, "vp"):
        path = path_named(name)
        t = times_with_log_snr(path).requires_grad_()
        (speed,) = torch.autograd.grad(path.schedule.log_snr(t).sum(), t)
        field = MixtureField(mixture(), path)
        for eta, expected in (("reverse", torch.ones_like(t)), ("damped", path.schedule.alpha(t))):
            nu_squared = solvers.eta_squared(field, eta)(t) / (path.schedule.sigma(t) ** 2 * speed)
            torch.testing.assert_close(nu_squared, expected, rtol=1e-9, atol=1e-9)


def test_a_network_keeps_its_conditions_gradients_and_dtype() -> None:
    net = nets.MLP(dim=2, width=8, classes=3)
    seen = RetimedField(NetworkField(net, paths.linear(), predicts="data"), paths.edm())
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 2, -1])
    out = seen.velocity(5 * x, 0.5, y=y)
    assert out.dtype == torch.float32
    assert not torch.equal(out, seen.velocity(5 * x, 0.5))
    out.sum().backward()
    assert net.last.weight.grad is not None


@pytest.mark.bad_input
class TestBadInput:
    def test_times_without_a_partner(self) -> None:
        with pytest.raises(ValueError, match=r"t = 0 of the Linear path has log-SNR -inf, which the VE path never"):
            paths.retime(0.0, paths.linear(), paths.ve())
        with pytest.raises(ValueError, match=r"its range is -8\.764 to 12\.43"):
            RetimedField(MixtureField(mixture(), paths.edm()), paths.linear()).data(torch.zeros(1, 2).double(), 1.0)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            paths.retime(1.5, paths.linear(), paths.cosine())

    def test_predictions_without_a_limit(self) -> None:
        x = torch.zeros(1, 2, dtype=torch.float64)
        seen = RetimedField(MixtureField(mixture(), paths.linear()), paths.vp())
        with pytest.raises(ValueError, match="velocity cannot be carried to the VP path at t = 1"):
            seen.velocity(x, 1.0)
        atoms = RetimedField(MixtureField(Empirical(mixture().means), paths.linear()), paths.cosine())
        with pytest.raises(ValueError, match="finite data set"):
            atoms.data(x, 1.0)
        data_only = FunctionField(lambda x, t: x, paths.linear(), predicts="data")
        with pytest.raises(ValueError, match="velocity cannot be computed from the data"):
            RetimedField(data_only, paths.cosine()).velocity(x, 1.0)
