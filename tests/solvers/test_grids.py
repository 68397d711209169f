"""Time grids are equal steps of their clock; adaptive steps keep their tolerance."""

import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField

READ = {
    "time": lambda path, t: t,
    "log_snr": lambda path, t: path.schedule.log_snr(t) / 2,
    "angle": lambda path, t: torch.atan2(path.schedule.alpha(t), path.schedule.sigma(t)),
    "rho": lambda path, t: (path.schedule.sigma(t) / path.schedule.alpha(t)) ** (1 / 7),
}


@pytest.mark.parametrize("clock", solvers.CLOCKS)
@pytest.mark.parametrize("name", sorted(paths.SCHEDULES))
def test_steps_are_equal_in_the_clock(name: str, clock: str) -> None:
    path = paths.by_name(name)
    times = solvers.clock_grid(path, 12, clock, start=0.05, end=0.97)
    steps = READ[clock](path, times).diff()
    assert float((steps / steps.mean() - 1).abs().max()) < 1e-7
    assert (float(times[0]), float(times[-1]), len(times)) == (0.05, 0.97, 13)
    assert bool((times.diff() > 0).all())


@pytest.mark.parametrize("clock", ["log_snr", "angle", "rho"])
def test_these_clocks_mean_the_same_on_every_path(clock: str) -> None:
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    seen = []
    for name in ("linear", "cosine", "vp", "edm"):
        schedule = paths.by_name(name).schedule
        start, end = schedule.time_of_log_snr(2 * ends).tolist()
        seen.append(schedule.log_snr(solvers.clock_grid(paths.by_name(name), 10, clock, start=start, end=end)))
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=0, atol=1e-6)


def test_the_edm_path_and_the_rho_clock_are_the_grid_of_karras() -> None:
    i = torch.arange(10, dtype=torch.float64) / 9
    sigma = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for path in (paths.edm(), paths.ve(0.002, 80.0)):
        times = solvers.clock_grid(path, 9, "rho")
        torch.testing.assert_close(path.schedule.sigma(times), sigma, rtol=1e-9, atol=1e-12)


def test_large_rho_is_the_log_snr_grid() -> None:
    a = solvers.clock_grid(paths.ve(), 10, "rho", rho=1e6)
    torch.testing.assert_close(a, solvers.clock_grid(paths.ve(), 10, "log_snr"), rtol=0, atol=1e-5)


def test_pure_ends_and_the_jump() -> None:
    times = solvers.clock_grid(paths.linear(), 8, "angle")
    assert (float(times[0]), float(times[-1])) == (0.0, 1.0)
    jump = solvers.clock_grid(paths.linear(), 8, "log_snr", start=0.01, end=0.9, jump=True)
    assert len(jump) == 9
    assert jump[-2:].tolist() == [0.9, 1.0]


@pytest.mark.parametrize("name", ["linear", "cosine", "ve"])
def test_a_shift_multiplies_the_noise_to_signal_ratio(name: str) -> None:
    path, t = paths.by_name(name), torch.linspace(0.4, 0.6, 5, dtype=torch.float64)
    moved = solvers.shift_times(path, t, 2.0)
    gap = path.schedule.log_snr(t) - path.schedule.log_snr(moved)
    torch.testing.assert_close(gap, torch.full_like(gap, 2 * math.log(2)))
    torch.testing.assert_close(solvers.shift_times(path, moved, 0.5), t)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(solvers.shift_times(path, ends, 2.0), ends)


class TestAdaptive:
    field = MixtureField(
        GaussianMixture(torch.tensor([[-1.0, 0.5], [1.2, -0.3]], dtype=torch.float64), 0.3), paths.vp()
    )
    x0 = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def test_the_error_follows_the_tolerance_and_evaluations_its_root(self) -> None:
        grid = solvers.clock_grid(self.field.path, 400, "log_snr", end=0.99)
        exact = solvers.ode(self.field, self.x0, times=grid, method="rk4", keep=False).end
        errors, costs = [], []
        for tolerance in (1e-1, 1e-2, 1e-3, 1e-4):
            run = solvers.adaptive_exponential(self.field, self.x0, end=0.99, rtol=tolerance, atol=tolerance)
            errors.append(float((run.end - exact).norm(dim=1).mean()))
            costs.append(run.nfe)
            assert bool((run.times.diff() > 0).all())
            assert float(run.times[-1]) == 0.99
        for tolerance, error in zip((1e-1, 1e-2, 1e-3, 1e-4), errors, strict=True):
            assert error < 2 * tolerance
        assert errors == sorted(errors, reverse=True)
        assert costs[3] / costs[2] == pytest.approx(math.sqrt(10), rel=0.15)  # the difference is of second order

    def test_evaluations_are_counted_and_an_atom_takes_the_longest_steps(self) -> None:
        calls = []

        def predict(x, t):
            calls.append(float(t))
            return torch.zeros_like(x)

        atom = FunctionField(predict, paths.vp(), predicts="data")
        run = solvers.adaptive_exponential(atom, self.x0, end=0.99, rtol=1e-6, atol=1e-6)
        assert run.nfe == len(calls) == 2 * (len(run) - 1)
        lengths = (paths.vp().schedule.log_snr(run.times) / 2).diff()
        expected = torch.tensor([0.1, 0.5, 1.0, 1.0], dtype=torch.float64)  # five times longer until the bound
        torch.testing.assert_close(lengths[:4], expected)
        expected = self.x0 * paths.vp().schedule.sigma(run.times[-1]) / paths.vp().schedule.sigma(run.times[0])
        torch.testing.assert_close(run.end, expected)

    def test_a_rejected_step_costs_one_evaluation(self) -> None:
        run = solvers.adaptive_exponential(self.field, self.x0, end=0.99, rtol=1e-3, atol=1e-3, first=5.0)
        assert run.nfe > 2 * (len(run) - 1)

    def test_a_bound_on_the_step_keeps_the_estimate_honest(self) -> None:
        """From high noise in one step to low noise the pair agrees on a wrong end: the mean predicts itself."""
        path = paths.edm(rho=1.0)
        draw = torch.Generator().manual_seed(1)
        means = torch.randn(4, 2, generator=draw, dtype=torch.float64)
        variances = 0.3 + 0.4 * torch.rand(4, generator=draw, dtype=torch.float64)
        field = MixtureField(GaussianMixture(means, variances), path)
        x = field.sample(150, 0.0, generator=torch.Generator().manual_seed(11))
        grid = solvers.clock_grid(path, 400, "log_snr")
        exact = solvers.ode(field, x, times=grid, method="rk4", keep=False).end
        error = {
            longest: float(
                (solvers.adaptive_exponential(field, x, rtol=0.02, atol=0.02, longest=longest).end - exact)
                .square().mean().sqrt()
            )
            for longest in (1.0, 20.0)
        }  # fmt: skip
        assert error[1.0] < 0.1 < error[20.0]

    @pytest.mark.bad_input
    def test_bad_input(self) -> None:
        linear = MixtureField(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0), paths.linear())
        for options in ({"end": 0.9}, {"start": 0.1}):
            with pytest.raises(ValueError, match="both must be finite"):
                solvers.adaptive_exponential(linear, self.x0, **options)
        with pytest.raises(ValueError, match="need 0 <= start < end <= 1"):
            solvers.adaptive_exponential(self.field, self.x0, start=0.5, end=0.4)
        for name in ("rtol", "atol", "first", "longest"):
            with pytest.raises(ValueError, match=f"{name} must be positive"):
                solvers.adaptive_exponential(self.field, self.x0, end=0.9, **{name: 0.0})
        with pytest.raises(TypeError, match="data prediction is needed"):
            solvers.adaptive_exponential(lambda x, t: x, self.x0)
        lost = FunctionField(lambda x, t: x * math.nan, paths.vp(), predicts="data")
        with pytest.raises(ValueError, match="not finite on the step from time 0 to"):
            solvers.adaptive_exponential(lost, self.x0, end=0.9)


@pytest.mark.bad_input
class TestBadInput:
    def test_grid(self) -> None:
        with pytest.raises(ValueError, match="clock must be one of"):
            solvers.clock_grid(paths.linear(), 5, "sigma")
        for clock, ends in (("log_snr", {"start": 0.1}), ("log_snr", {"end": 0.9}), ("rho", {})):
            with pytest.raises(ValueError, match="is infinite at one of"):
                solvers.clock_grid(paths.linear(), 5, clock, **ends)
        with pytest.raises(ValueError, match="need 0 <= start < end <= 1"):
            solvers.clock_grid(paths.linear(), 5, "time", start=0.7, end=0.2)
        with pytest.raises(ValueError, match="jump needs end < 1"):
            solvers.clock_grid(paths.linear(), 5, "time", jump=True)
        with pytest.raises(TypeError, match="steps must be an int"):
            solvers.clock_grid(paths.linear(), 5.0, "time")
        with pytest.raises(ValueError, match="rho must be positive"):
            solvers.clock_grid(paths.ve(), 5, "rho", rho=0.0)

    def test_shift(self) -> None:
        with pytest.raises(ValueError, match="factor must be positive"):
            solvers.shift_times(paths.linear(), torch.tensor([0.5]), -1.0)
        with pytest.raises(ValueError, match="times must lie in"):
            solvers.shift_times(paths.linear(), torch.tensor([1.5]), 2.0)
