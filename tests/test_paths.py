"""Schedules are what they claim, and the twelve conversions are exact wherever the mathematics is."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from flowlib import paths

ALL = sorted(paths.SCHEDULES)
PAIRS = list(itertools.permutations(paths.PREDICTIONS, 2))
INNER = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
DIFFUSIONS = {
    "vp": paths.vp(beta_min=0.3, beta_max=8.0),
    "sub_vp": paths.sub_vp(beta_min=0.3, beta_max=8.0),
    "ve": paths.ve(sigma_min=0.05, sigma_max=10.0),
    "edm": paths.edm(sigma_min=0.02, sigma_max=20.0, rho=5.0),
    "mean_reverting": paths.mean_reverting(sigma_inf=0.3, theta_min=0.2, theta_max=4.0),
}


def draws(n: int = 6, dim: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return x0, x1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("quantity", ["alpha", "sigma"])
def test_derivatives_agree_with_automatic_differentiation(name: str, quantity: str) -> None:
    schedule = paths.by_name(name).schedule
    t = INNER.clone().requires_grad_()
    values = getattr(schedule, quantity)(t)
    # a constant alpha does not depend on t
    (numeric,) = torch.autograd.grad(values.sum() + 0 * t.sum(), t)
    torch.testing.assert_close(getattr(schedule, f"{quantity}_dot")(INNER), numeric, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_variance_derivative_is_twice_sigma_times_its_derivative(name: str) -> None:
    schedule = paths.by_name(name).schedule
    product = 2 * schedule.sigma(INNER) * schedule.sigma_dot(INNER)
    torch.testing.assert_close(schedule.variance_dot(INNER), product, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_variance_derivative_is_finite_on_the_closed_interval(name: str) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.isfinite(paths.by_name(name).schedule.variance_dot(ends)).all()


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(t=st.floats(0.02, 0.98))
def test_log_snr_and_its_inverse(name: str, t: float) -> None:
    schedule = paths.by_name(name).schedule
    time = torch.tensor(t, dtype=torch.float64)
    log_snr = schedule.log_snr(time)
    expected = 2 * torch.log(schedule.alpha(time) / schedule.sigma(time))
    torch.testing.assert_close(log_snr, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(schedule.time_of_log_snr(log_snr), time, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_log_snr_increases_from_noise_to_data(name: str) -> None:
    assert (paths.by_name(name).schedule.log_snr(INNER).diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_endpoints_are_exact(name: str, dtype: torch.dtype) -> None:
    schedule = paths.by_name(name).schedule
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    assert torch.equal(schedule.alpha(t), t)
    assert torch.equal(schedule.sigma(t), 1 - t)


def test_variance_preserving_schedules_preserve_variance() -> None:
    for name in ("vp", "cosine"):
        schedule = paths.by_name(name).schedule
        torch.testing.assert_close(
            schedule.alpha(INNER) ** 2 + schedule.sigma(INNER) ** 2, torch.ones_like(INNER), rtol=0, atol=1e-14
        )


def test_vp_starts_at_the_published_signal_level() -> None:
    """alpha(0) = exp(-(beta_min + beta_max) / 4) = exp(-5.025) for the defaults of Score-SDE."""
    alpha = paths.vp().schedule.alpha(torch.tensor(0.0, dtype=torch.float64))
    assert float(alpha) == pytest.approx(math.exp(-5.025), rel=1e-12)


def test_mean_reverting_is_vp_in_the_centred_scaled_state() -> None:
    vp = paths.vp(0.1, 21.1).schedule
    reverting = paths.mean_reverting(sigma_inf=0.2, theta_min=0.05, theta_max=10.55).schedule
    torch.testing.assert_close(reverting.alpha(INNER), vp.alpha(INNER))
    torch.testing.assert_close(reverting.sigma(INNER), 0.2 * vp.sigma(INNER))


@pytest.mark.parametrize("name", sorted(DIFFUSIONS))
def test_moments_solve_the_forward_sde(name: str) -> None:
    """m' = f m and P' = 2 f P + g^2, integrated from data to noise, give alpha and sigma^2."""
    path = DIFFUSIONS[name]
    one = torch.tensor(1.0, dtype=torch.float64)

    def moments(r: float, state: list[float]) -> list[float]:
        f, g2 = path.drift_diffusion(torch.tensor(1.0 - r, dtype=torch.float64))
        return [float(f) * state[0], 2 * float(f) * state[1] + float(g2)]

    start = [float(path.schedule.alpha(one)), float(path.schedule.sigma(one)) ** 2]
    grid = torch.linspace(0, 1, 6, dtype=torch.float64)
    solution = solve_ivp(moments, (0, 1), start, t_eval=grid.tolist(), rtol=1e-11, atol=1e-12)
    alpha, variance = torch.from_numpy(solution.y)
    torch.testing.assert_close(alpha, path.schedule.alpha(1 - grid), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(variance, path.schedule.sigma(1 - grid) ** 2, rtol=1e-8, atol=1e-8)


def test_vp_diffusion_is_beta() -> None:
    f, g2 = paths.vp().drift_diffusion(INNER)
    beta = 0.1 + 19.9 * (1 - INNER)
    torch.testing.assert_close(f, -beta / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(g2, beta, rtol=1e-11, atol=0)


def test_sub_vp_has_the_drift_of_vp_and_a_smaller_diffusion() -> None:
    """g^2 = beta (1 - exp(-2B)); the variance is the square of the one of VP, hence never larger."""
    f, g2 = paths.sub_vp().drift_diffusion(INNER)
    r = 1 - INNER
    beta, B = 0.1 + 19.9 * r, 0.1 * r + 9.95 * r**2
    torch.testing.assert_close(f, -beta / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(g2, -beta * torch.expm1(-2 * B), rtol=1e-10, atol=0)
    sub_vp, vp = paths.sub_vp().schedule, paths.vp().schedule
    torch.testing.assert_close(sub_vp.alpha(INNER), vp.alpha(INNER), rtol=0, atol=0)
    torch.testing.assert_close(sub_vp.sigma(INNER), vp.sigma(INNER) ** 2, rtol=1e-12, atol=0)
    assert (sub_vp.sigma(INNER) ** 2 <= vp.sigma(INNER) ** 2).all()


@pytest.mark.parametrize("name", ALL)
def test_forward_diffusion_is_twice_sigma_squared_times_the_rate_of_half_log_snr(name: str) -> None:
    """g^2 = 2 sigma^2 d(log alpha/sigma)/dt: an independent route to the same coefficient."""
    path = paths.by_name(name)
    t = INNER.clone().requires_grad_()
    (rate,) = torch.autograd.grad(path.schedule.log_snr(t).sum() / 2, t)
    _, g2 = path.drift_diffusion(INNER)
    torch.testing.assert_close(g2, 2 * path.schedule.sigma(INNER) ** 2 * rate, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversion_of_the_targets_of_one_pair_is_exact(name: str, source: str, target: str) -> None:
    """Given one pair (x0, x1), all four targets describe the same point, so conversions map them to each other."""
    path = paths.by_name(name)
    x0, x1 = draws()
    for t in (0.02, 0.3, 0.7, 0.98):
        x = path.interpolate(x0, x1, t)
        value = path.target(source, x0, x1, t)
        expected = path.target(target, x0, x1, t)
        scale = max(1.0, float(expected.abs().max()))
        assert float((path.convert(value, x, t, source, target) - expected).abs().max()) < 1e-10 * scale


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_are_inverse_to_each_other(name: str, source: str, target: str) -> None:
    path = paths.by_name(name)
    value, x = draws(seed=1)
    t = torch.linspace(0.02, 0.98, 6, dtype=torch.float64)  # one time a sample
    there = path.convert(value, x, t, source, target)
    back = path.convert(there, x, t, target, source)
    # rounding is amplified by at most the size of the coefficients
    a, b = path.coefficients(t, target, source)
    bound = 1e-13 * (1 + (a.abs() * 10 + b.abs() * there.abs().amax(1)).max())
    assert float((back - value).abs().max()) < float(bound)


def test_linear_path_closed_forms() -> None:
    """x1 = x + (1 - t) v, x0 = x - t v, s = (t v - x) / (1 - t); the determinant of [[a, s], [a', s']] is -1."""
    path = paths.linear()
    v, x = draws()
    t = 0.37
    torch.testing.assert_close(path.convert(v, x, t, "velocity", "data"), x + (1 - t) * v)
    torch.testing.assert_close(path.convert(v, x, t, "velocity", "noise"), x - t * v)
    torch.testing.assert_close(path.convert(v, x, t, "velocity", "score"), (t * v - x) / (1 - t))
    schedule = path.schedule
    determinant = schedule.alpha(INNER) * schedule.sigma_dot(INNER) - schedule.sigma(INNER) * schedule.alpha_dot(INNER)
    torch.testing.assert_close(determinant, -torch.ones_like(INNER))


SINGULAR = {
    # schedule: (conversions without a limit at t = 0, at t = 1)
    "linear": ({"sv", "sd", "nv", "nd"}, {"vs", "dv", "ds", "dn", "ns"}),
    "cosine": ({"sv", "sd", "nv", "nd"}, {"vs", "dv", "ds", "dn", "ns"}),
    "vp": (set(), {"dv", "ds", "dn", "nv", "ns"}),
    "mean_reverting": (set(), {"dv", "ds", "dn", "nv", "ns"}),
    "sub_vp": (set(), {"vs", "dv", "ds", "dn", "ns"}),
    "ve": (set(), set()),
    "edm": (set(), set()),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_are_finite_at_the_ends_or_say_why_not(name: str, end: int, source: str, target: str) -> None:
    path = paths.by_name(name)
    value, x = draws()
    if source[0] + target[0] in SINGULAR[name][end]:
        with pytest.raises(ValueError, match=rf"{target} cannot be computed from the {source}.*t = {end}"):
            path.convert(value, x, float(end), source, target)
    else:
        assert torch.isfinite(path.convert(value, x, float(end), source, target)).all()


def test_vp_score_and_velocity_are_inverse_at_the_data_end() -> None:
    """sigma_dot is infinite there, yet v = -f x + g^2/2 s has a limit and can be undone."""
    path = paths.vp()
    s, x = draws()
    v = path.convert(s, x, 1.0, "score", "velocity")
    torch.testing.assert_close(v, 0.05 * x + 0.05 * s, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(path.convert(v, x, 1.0, "velocity", "score"), s, rtol=1e-10, atol=1e-12)


def test_center_shifts_states_and_data_but_not_velocity_score_or_noise() -> None:
    plain, shifted = paths.mean_reverting(0.0), paths.mean_reverting(torch.tensor([1.0, -2.0, 0.5]).double())
    mu = shifted.center
    x0, x1 = draws()
    x = plain.interpolate(x0, x1, 0.4)
    torch.testing.assert_close(shifted.interpolate(x0, x1 + mu, 0.4), x + mu)
    for kind in ("velocity", "score", "noise"):
        torch.testing.assert_close(shifted.target(kind, x0, x1 + mu, 0.4), plain.target(kind, x0, x1, 0.4))
    v = plain.target("velocity", x0, x1, 0.4)
    torch.testing.assert_close(shifted.convert(v, x + mu, 0.4, "velocity", "data"), x1 + mu)


@pytest.mark.parametrize("name", ALL)
def test_prior_has_the_standard_deviation_of_the_state_at_time_zero(name: str) -> None:
    path = paths.by_name(name)
    draw = path.sample_prior((20000, 2), generator=torch.Generator().manual_seed(0))
    assert float(draw.std()) == pytest.approx(path.prior_std, rel=0.02)
    sigma = float(path.schedule.sigma(torch.tensor(0.0, dtype=torch.float64)))
    assert path.prior_std == pytest.approx(sigma, rel=1e-4)


def test_retiming_maps_every_gaussian_path_to_the_linear_one() -> None:
    """x_t = c x^lin_tau with c = alpha + sigma and tau = alpha / c."""
    x0, x1 = draws()
    for name in ALL:
        path = paths.by_name(name)
        for t in (0.1, 0.5, 0.9):
            time = torch.tensor(t, dtype=torch.float64)
            alpha, sigma = path.schedule.alpha(time), path.schedule.sigma(time)
            c, tau = alpha + sigma, alpha / (alpha + sigma)
            torch.testing.assert_close(path.interpolate(x0, x1, t), c * paths.linear().interpolate(x0, x1, tau))


@pytest.mark.parametrize(
    ("name", "peer"), [("linear", "CondOTScheduler"), ("cosine", "CosineScheduler"), ("vp", "VPScheduler")]
)
def test_schedules_agree_with_the_flow_matching_package(name: str, peer: str) -> None:
    scheduler = pytest.importorskip("flow_matching.path.scheduler")
    theirs, ours = getattr(scheduler, peer)()(INNER), paths.by_name(name).schedule
    torch.testing.assert_close(theirs.alpha_t, ours.alpha(INNER), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(theirs.sigma_t, ours.sigma(INNER), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(theirs.d_alpha_t, ours.alpha_dot(INNER), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(theirs.d_sigma_t, ours.sigma_dot(INNER), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 2), (4, 1, 8, 8)])
def test_times_broadcast_over_any_event_shape(shape: tuple[int, ...]) -> None:
    x0, x1 = torch.zeros(shape), torch.ones(shape)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    out = paths.linear().interpolate(x0, x1, t)
    assert torch.equal(out.flatten(1)[:, 0], t)
    assert torch.equal(out[2], paths.linear().interpolate(x0, x1, 0.5)[2])


@pytest.mark.bad_input
class TestBadInput:
    path = paths.linear()
    x = torch.zeros(3, 2)

    @pytest.mark.parametrize("t", [-0.1, 1.5, math.nan])
    def test_time_outside_the_unit_interval(self, t: float) -> None:
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            self.path.interpolate(self.x, self.x, t)

    def test_time_of_another_length(self) -> None:
        with pytest.raises(ValueError, match=r"of shape \[3\].*got shape \[2\]"):
            self.path.interpolate(self.x, self.x, torch.zeros(2))

    def test_shapes_that_would_broadcast(self) -> None:
        with pytest.raises(ValueError, match="x0 and x1 must have the same shape"):
            self.path.interpolate(torch.zeros(1, 2), self.x, 0.5)

    def test_mixed_dtypes(self) -> None:
        with pytest.raises(TypeError, match="same dtype"):
            self.path.interpolate(self.x.double(), self.x, 0.5)
        with pytest.raises(TypeError, match="t must have the dtype"):
            self.path.interpolate(self.x, self.x, torch.zeros(3, dtype=torch.float64))

    def test_mixed_devices(self) -> None:
        with pytest.raises(ValueError, match="one device"):
            self.path.convert(self.x, self.x.to("meta"), 0.5, "velocity", "data")

    def test_nan_data(self) -> None:
        bad = self.x.clone()
        bad[1, 0] = math.nan
        with pytest.raises(ValueError, match="x1 has NaN or infinite entries in 1 of 3 samples"):
            self.path.interpolate(self.x, bad, 0.5)

    def test_empty_batch(self) -> None:
        with pytest.raises(ValueError, match="x0 is empty"):
            self.path.interpolate(torch.zeros(0, 2), torch.zeros(0, 2), 0.5)

    def test_integer_states(self) -> None:
        with pytest.raises(TypeError, match="floating-point"):
            self.path.interpolate(self.x.long(), self.x.long(), 0.5)

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match=r"name must be one of 'linear', 'cosine'.*got 'quadratic'"):
            paths.by_name("quadratic")
        with pytest.raises(ValueError, match="source must be one of 'velocity'"):
            self.path.convert(self.x, self.x, 0.5, "speed", "data")
        with pytest.raises(ValueError, match="predicts must be one of"):
            self.path.target("speed", self.x, self.x, 0.5)

    def test_infinite_targets(self) -> None:
        with pytest.raises(ValueError, match=r"score target .* infinite at t = 1"):
            self.path.target("score", self.x, self.x, 1.0)
        with pytest.raises(ValueError, match=r"sigma_dot is infinite at t = 1"):
            paths.vp().target("velocity", self.x, self.x, 1.0)

    def test_singular_forward_sde(self) -> None:
        with pytest.raises(ValueError, match=r"forward SDE is singular at t = 0"):
            self.path.drift_diffusion(0.0)
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            self.path.drift_diffusion(1.2)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: paths.vp(beta_min=0.0),
            lambda: paths.sub_vp(beta_min=3.0, beta_max=2.0),
            lambda: paths.ve(sigma_min=2.0, sigma_max=1.0),
            lambda: paths.edm(rho=0.5),
            lambda: paths.mean_reverting(sigma_inf=-1.0),
            lambda: paths.mean_reverting(theta_min=3.0, theta_max=2.0),
        ],
    )
    def test_parameters_out_of_range(self, make) -> None:
        with pytest.raises(ValueError, match=r"need|must be"):
            make()
