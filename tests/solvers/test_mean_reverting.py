"""MR Sampler: the step is a shifted, scaled VP step; exact cases; orders; the law of the SDE forms."""

import itertools
import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField, NetworkField
from flowlib.solvers.mean_reverting import FORMS

T = torch.float64
SIGMA_INF = 0.4
MEAN, VARIANCE = 0.9, 0.04


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=T)


CENTER = randn(5, 3, seed=9)
PATH = paths.mean_reverting(CENTER, SIGMA_INF)  # one centre for each of five samples
GAUSSIAN_PATH = paths.mean_reverting(0.3, SIGMA_INF)


def lam(path: paths.GaussianPath, t: float) -> float:
    return float(path.schedule.log_snr(torch.tensor(t, dtype=T))) / 2


def scalars(path: paths.GaussianPath, t: float) -> tuple[float, float]:
    clock = torch.tensor(t, dtype=T)
    return float(path.schedule.alpha(clock)), float(path.schedule.sigma(clock))


def even_clock(path: paths.GaussianPath, steps: int, low: float = 0.01) -> torch.Tensor:
    r"""Even steps of $\lambda$ from t = 0 to where sigma is `low` of its largest value."""
    schedule = path.schedule
    end = -2 * math.log(low * schedule.prior_std)
    start = float(schedule.log_snr(torch.tensor(0.0, dtype=T)))
    return schedule.time_of_log_snr(torch.linspace(start, end, steps + 1, dtype=T)).clamp(0, 1)


def vp_step(x, predictions, times, u, kind: str, nu: int, z, path):
    """The published DPM-Solver++ and DPM-Solver formulas on a VP path, orders 1 and 2, in plain numbers."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = scalars(path, times[0]), scalars(path, u)
    h = lam(path, u) - lam(path, times[0])
    p, d1 = predictions[0], torch.zeros_like(x)
    if len(predictions) == 2:
        r = (lam(path, times[0]) - lam(path, times[1])) / h
        d1 = (predictions[0] - predictions[1]) / r
    e = math.exp
    if kind == "data" and nu == 0:
        return sigma_t / sigma_s * x + alpha_t * ((1 - e(-h)) * p + (1 - (1 - e(-h)) / h) * d1)
    if kind == "noise" and nu == 0:
        return alpha_t / alpha_s * x - sigma_t * ((e(h) - 1) * p + ((e(h) - 1) / h - 1) * d1)
    if kind == "data":
        drift = alpha_t * ((1 - e(-2 * h)) * p + (1 - (1 - e(-2 * h)) / (2 * h)) * d1)
        return sigma_t / sigma_s * e(-h) * x + drift + sigma_t * math.sqrt(1 - e(-2 * h)) * z
    drift = 2 * sigma_t * ((e(h) - 1) * p + ((e(h) - 1) / h - 1) * d1)
    return alpha_t / alpha_s * x - drift + sigma_t * math.sqrt(e(2 * h) - 1) * z


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nu", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_step_is_a_vp_step_on_the_shifted_and_scaled_state(form: str, nu: int, order: int) -> None:
    times, u = [0.5, 0.35][:order], 0.7
    x, z, *values = (randn(5, 3, seed=s) for s in range(2 + order))
    ours = solvers.mr_step(PATH, x, values, times, u, form=form, nu=nu, noise=z)
    vp = paths.vp(2 * PATH.schedule.theta_min, 2 * PATH.schedule.theta_max)
    scaled = [(v - CENTER) / SIGMA_INF if form == "data" else v for v in values]
    theirs = vp_step((x - CENTER) / SIGMA_INF, scaled, times, u, form, nu, z, vp)
    torch.testing.assert_close((ours - CENTER) / SIGMA_INF, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nu", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_without_centre_and_with_unit_noise_it_is_the_vp_step(form: str, nu: int, order: int) -> None:
    times, u = [0.5, 0.35][:order], 0.7
    x, z, *values = (randn(5, 3, seed=s) for s in range(2 + order))
    path, vp = paths.mean_reverting(0.0, 1.0), paths.vp(0.1, 21.1)
    ours = solvers.mr_step(path, x, values, times, u, form=form, nu=nu, noise=z)
    torch.testing.assert_close(ours, vp_step(x, values, times, u, form, nu, z, vp), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        solvers.mr_step(vp, x, values, times, u, form=form, nu=nu, noise=z), ours, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_run_agrees_with_diffusers_on_the_shifted_state(algorithm: str, order: int) -> None:
    """Both run from the same state with the same network; diffusers keeps its noise levels in single precision."""
    diffusers = pytest.importorskip("diffusers")
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=T)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=betas.numpy(),
        algorithm_type=algorithm,
        solver_order=order,
        solver_type="heun",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    scheduler.set_timesteps(12)
    nu = int("sde" in algorithm)
    net = lambda y: torch.tanh(y) + 0.1
    # their noise levels on our schedule, where sigma/alpha is sigma_inf times as large
    clock = PATH.schedule.time_of_log_snr(-2 * torch.log(SIGMA_INF * scheduler.sigmas.double()))
    theirs = randn(5, 3)  # the VP state (x - mu) / sigma_inf
    mine, known = CENTER + SIGMA_INF * theirs, []
    for i, step in enumerate(scheduler.timesteps):
        z = randn(5, 3, seed=100 + i)
        noise = net((mine - CENTER) / SIGMA_INF)
        known.insert(0, PATH.convert(noise, mine, clock[i], "noise", "data"))
        past = [clock[i - j] for j in range(min(order, i + 1))]
        mine = solvers.mr_step(PATH, mine, known[: len(past)], past, clock[i + 1], nu=nu, noise=z)
        theirs = scheduler.step(net(theirs), step, theirs, variance_noise=z).prev_sample
        torch.testing.assert_close((mine - CENTER) / SIGMA_INF, theirs, rtol=1e-5, atol=1e-5)


def test_first_order_sde_step_is_the_ancestral_posterior() -> None:
    t, u = 0.4, 0.6
    (alpha_t, _), (alpha_u, _) = scalars(PATH, t), scalars(PATH, u)
    a, b, c = alpha_t / alpha_u, alpha_t, alpha_u
    zero, one = torch.zeros(1, 1, dtype=T), torch.ones(1, 1, dtype=T)
    plain = paths.mean_reverting(0.0, SIGMA_INF)
    on_state = solvers.mr_step(plain, one, [zero], [t], u, nu=1.0, noise=zero)
    on_data = solvers.mr_step(plain, zero, [one], [t], u, nu=1.0, noise=zero)
    on_noise = solvers.mr_step(plain, zero, [zero], [t], u, nu=1.0, noise=one)
    assert float(on_state) == pytest.approx(a * (1 - c**2) / (1 - b**2), abs=1e-12)
    assert float(on_data) == pytest.approx(c * (1 - a**2) / (1 - b**2), abs=1e-12)
    assert float(on_noise) ** 2 == pytest.approx(SIGMA_INF**2 * (1 - a**2) * (1 - c**2) / (1 - b**2), abs=1e-12)
    for ours, library in zip((on_state, on_data, on_noise**2), plain.posterior(t, u), strict=True):
        assert float(ours) == pytest.approx(float(library), abs=1e-6)


def test_ancestral_solver_is_the_first_order_sde() -> None:
    field = MixtureField(GaussianMixture(randn(4, 3), 0.05), paths.mean_reverting(CENTER[0], SIGMA_INF))
    x0 = field.path.sample_prior((6, 3), generator=torch.Generator().manual_seed(1), dtype=T)
    grid, draw = torch.linspace(0, 0.99, 12, dtype=T), lambda: torch.Generator().manual_seed(2)
    ours = solvers.mr_sampler(field, x0, times=grid, order=1, nu=1.0, generator=draw()).states
    torch.testing.assert_close(ours, solvers.ancestral(field, x0, times=grid, generator=draw()).states)


def test_both_forms_agree_at_order_one_and_differ_at_order_two() -> None:
    net = lambda x, t: torch.sin(3 * x) + t
    field = FunctionField(net, PATH, predicts="noise")
    x0, grid = CENTER + SIGMA_INF * randn(5, 3), even_clock(PATH, 12)
    runs = {
        (form, order): solvers.mr_sampler(field, x0, times=grid, order=order, form=form).end
        for form in FORMS
        for order in (1, 2)
    }
    torch.testing.assert_close(runs["data", 1], runs["noise", 1], rtol=0, atol=1e-10)
    torch.testing.assert_close(runs["data", 1], solvers.ode(field, x0, times=grid, method="ddim").end)
    assert (runs["data", 2] - runs["noise", 2]).abs().max() > 1e-3


def test_round_trips_between_data_noise_and_angular_velocity() -> None:
    x, data = randn(5, 3, seed=1), randn(5, 3, seed=2)
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.999], dtype=T)
    noise = PATH.convert(data, x, t, "data", "noise")
    angular = solvers.angular_velocity(PATH, noise, data, t)
    back = solvers.data_from_angular(PATH, x, angular, t)
    torch.testing.assert_close(back, data, rtol=0, atol=1e-10)
    torch.testing.assert_close(PATH.convert(back, x, t, "data", "noise"), noise, rtol=0, atol=1e-8)
    torch.testing.assert_close(PATH.convert(noise, x, t, "noise", "data"), data, rtol=0, atol=1e-10)
    alpha, sine = PATH.schedule.alpha(t)[:, None], PATH.schedule.sigma(t)[:, None] / SIGMA_INF
    formula = (alpha * angular + sine * (x - CENTER)) / SIGMA_INF  # the noise from V, as the paper writes it
    torch.testing.assert_close(formula, noise, rtol=0, atol=1e-10)


def test_angular_velocity_is_the_velocity_in_the_angle() -> None:
    x0, x1, t = randn(5, 3, seed=1), randn(5, 3, seed=2), torch.tensor(0.6, dtype=T)
    angle = lambda s: torch.arccos(PATH.schedule.alpha(s))
    step = 1e-6
    rate = (angle(t + step) - angle(t - step)) / (2 * step)
    ours = solvers.angular_velocity(PATH, x0, x1, t) * rate
    torch.testing.assert_close(ours, PATH.target("velocity", x0, x1, t), rtol=1e-7, atol=1e-7)


def test_first_order_step_is_a_rotation_by_the_angle() -> None:
    x, data, t, u = randn(5, 3, seed=1), randn(5, 3, seed=2), 0.3, 0.55
    noise = PATH.convert(data, x, torch.tensor(t, dtype=T), "data", "noise")
    angular = solvers.angular_velocity(PATH, noise, data, t)
    turn = math.acos(scalars(PATH, u)[0]) - math.acos(scalars(PATH, t)[0])
    rotated = CENTER + math.cos(turn) * (x - CENTER) + math.sin(turn) * angular
    torch.testing.assert_close(solvers.mr_step(PATH, x, [data], [t], u), rotated, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_centre_stays_where_it_is(form: str, order: int) -> None:
    """If state and data prediction are the centre, no step of any length moves: the coefficients sum to one."""
    field = FunctionField(lambda x, t: CENTER.expand_as(x), PATH, predicts="data")
    for grid in (even_clock(PATH, 7), torch.tensor([0.0, 0.9], dtype=T), torch.tensor([0.1, 0.11, 0.999], dtype=T)):
        states = solvers.mr_sampler(field, CENTER, times=grid, order=order, form=form).states
        torch.testing.assert_close(states, CENTER.expand_as(states), rtol=0, atol=1e-12)


@pytest.mark.parametrize("nu", [0.0, 0.6])
@pytest.mark.parametrize("u", [0.3, 0.9, 0.999])
def test_one_data_step_of_any_length_is_exact_for_a_constant_data_prediction(u: float, nu: float) -> None:
    """The deterministic part of the SDE step too: y/sigma relaxes with the rate 1 + nu^2 in lambda."""
    t, x, data = 0.05, randn(5, 3, seed=1), randn(5, 3, seed=2)
    ours = solvers.mr_step(PATH, x, [data], [t], u, nu=nu, noise=torch.zeros_like(x))
    (alpha_t, sigma_t), (alpha_u, sigma_u) = scalars(PATH, t), scalars(PATH, u)
    noise = (x - CENTER - alpha_t * (data - CENTER)) / sigma_t
    shrink = math.exp(-(nu**2) * (lam(PATH, u) - lam(PATH, t)))
    exact = CENTER + alpha_u * (data - CENTER) + sigma_u * shrink * noise
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("u", [0.3, 0.9, 0.999])
def test_one_noise_step_of_any_length_is_exact_for_a_constant_noise_prediction(u: float) -> None:
    t, x1, noise = 0.05, randn(5, 3, seed=1), randn(5, 3, seed=2)
    x = PATH.interpolate(noise, x1, t)
    ours = solvers.mr_step(PATH, x, [noise], [t], u, form="noise")
    torch.testing.assert_close(ours, PATH.interpolate(noise, x1, u), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_in_lambda_are_integrated_exactly(order: int) -> None:
    """A data prediction of degree order - 1 in lambda, against quadrature of the variation of constants."""
    t, u, nu = 0.5, 0.65, 0.7
    past = [0.5, 0.42, 0.31][:order]
    polynomial = lambda values: sum((k + 1) * (values / 3) ** k for k in range(order))
    (_, sigma_t), (alpha_u, sigma_u) = scalars(PATH, t), scalars(PATH, u)
    low, high = lam(PATH, t), lam(PATH, u)
    clock = torch.linspace(low, high, 20_001, dtype=T)
    kappa = 1 + nu**2
    integral = torch.trapezoid(kappa * torch.exp(-kappa * (high - clock)) * polynomial(clock), clock)
    plain, zero = paths.mean_reverting(0.0, SIGMA_INF), torch.zeros(1, 1, dtype=T)
    values = [torch.full((1, 1), float(polynomial(torch.tensor(lam(PATH, s)).double())), dtype=T) for s in past]
    ours = solvers.mr_step(plain, zero + 1, values, past, u, nu=nu, noise=zero)
    exact = sigma_u / sigma_t * math.exp(-(nu**2) * (high - low)) + alpha_u * integral
    assert float(ours) == pytest.approx(float(exact), abs=1e-8)

    integral = torch.trapezoid(torch.exp(high - clock) * polynomial(clock), clock)
    (alpha_t, _) = scalars(PATH, t)
    ours = solvers.mr_step(plain, zero + 1, values, past, u, form="noise", nu=nu, noise=zero)
    assert float(ours) == pytest.approx(float(alpha_u / alpha_t - kappa * sigma_u * integral), abs=1e-8)


def gaussian() -> MixtureField:
    return MixtureField(GaussianMixture(torch.full((1, 1), MEAN, dtype=T), VARIANCE), GAUSSIAN_PATH)


def marginal(t: float) -> tuple[float, float]:
    alpha, sigma = scalars(GAUSSIAN_PATH, t)
    return 0.3 + alpha * (MEAN - 0.3), alpha**2 * VARIANCE + sigma**2


@pytest.mark.parametrize(("order", "least"), [(1, 0.9), (2, 1.8), (3, 2.7)])
@pytest.mark.parametrize("form", FORMS)
def test_orders_on_gaussian_data_with_even_steps_of_lambda(form: str, order: int, least: float) -> None:
    x0 = torch.linspace(-0.8, 1.4, 7, dtype=T)[:, None]
    errors = []
    for steps in (20, 40, 80, 160):
        grid = even_clock(GAUSSIAN_PATH, steps)
        (mean_s, var_s), (mean_t, var_t) = marginal(float(grid[0])), marginal(float(grid[-1]))
        exact = mean_t + math.sqrt(var_t / var_s) * (x0 - mean_s)
        run = solvers.mr_sampler(gaussian(), x0, times=grid, order=order, form=form)
        errors.append(float((run.end - exact).abs().max()))
        assert run.nfe == steps
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(slopes) >= least
    assert errors[-1] < 0.05**order


def affine_moments(grid: torch.Tensor, order: int, form: str) -> tuple[float, float]:
    """Mean and variance of the SDE chain on Gaussian data, exactly.

    State and last prediction form a linear chain, whose matrices come from calls of the step.
    """
    predict = gaussian().function(form)
    zero, one = torch.zeros(1, 1, dtype=T), torch.ones(1, 1, dtype=T)
    mean_0, variance_0 = marginal(float(grid[0]))
    mean, covariance = torch.tensor([mean_0, 0.0], dtype=T), torch.diag(torch.tensor([variance_0, 0.0], dtype=T))
    for i in range(len(grid) - 1):
        past = [grid[i], grid[i - 1]] if order == 2 and i > 0 else [grid[i]]

        def move(x, before, z, past=past, i=i):
            values = [predict(x, past[0]), before][: len(past)]
            step = solvers.mr_step(GAUSSIAN_PATH, x, values, past, grid[i + 1], form=form, nu=1.0, noise=z)
            return torch.stack([step.squeeze(), values[0].squeeze()])

        shift = move(zero, zero, zero)
        matrix = torch.stack([move(one, zero, zero) - shift, move(zero, one, zero) - shift], 1)
        kick = move(zero, zero, one) - shift
        mean, covariance = matrix @ mean + shift, matrix @ covariance @ matrix.T + torch.outer(kick, kick)
    return float(mean[0]), float(covariance[0, 0])


@pytest.mark.parametrize(("form", "order", "weak"), [("data", 1, 1), ("data", 2, 2), ("noise", 2, 2)])
def test_weak_order_of_the_sde_forms_on_gaussian_data(form: str, order: int, weak: int) -> None:
    errors = []
    for steps in (60, 120):
        grid = even_clock(GAUSSIAN_PATH, steps)
        mean, variance = affine_moments(grid, order, form)
        exact_mean, exact_variance = marginal(float(grid[-1]))
        assert mean == pytest.approx(exact_mean, abs=1e-10)
        errors.append(abs(variance / exact_variance - 1))
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([weak], abs=0.15)


@pytest.mark.parametrize(("order", "tolerance"), [(1, 0.08), (2, 0.04)])
@pytest.mark.parametrize("form", FORMS)
def test_law_of_the_sde_forms(form: str, order: int, tolerance: float) -> None:
    n, generator = 20_000, torch.Generator().manual_seed(3)
    grid = even_clock(GAUSSIAN_PATH, 200)
    (mean_0, var_0), (mean, variance) = marginal(float(grid[0])), marginal(float(grid[-1]))
    x0 = mean_0 + math.sqrt(var_0) * torch.randn(n, 1, generator=generator, dtype=T)
    options = {"order": order, "form": form, "nu": 1.0, "keep": False, "generator": generator}
    x = solvers.mr_sampler(gaussian(), x0, times=grid, **options).end
    assert abs(float(x.mean()) - mean) <= 4 * math.sqrt(variance / n)
    assert abs(float(x.var()) / variance - 1) <= tolerance


def test_a_noise_level_in_between_has_the_same_law() -> None:
    n, generator = 10_000, torch.Generator().manual_seed(4)
    x0 = GAUSSIAN_PATH.sample_prior((n, 1), generator=generator, dtype=T)
    grid = even_clock(GAUSSIAN_PATH, 100)
    x = solvers.mr_sampler(gaussian(), x0, times=grid, nu=0.5, generator=generator, keep=False).end
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.var()) == pytest.approx(VARIANCE, rel=0.06)


def test_few_steps_start_and_end_at_a_lower_order(monkeypatch) -> None:
    from flowlib.solvers import mean_reverting

    used, step = [], mean_reverting.mr_step

    def recorded(path, x, values, *rest, **options):
        used.append(len(values))
        return step(path, x, values, *rest, **options)

    monkeypatch.setattr(mean_reverting, "mr_step", recorded)
    x0 = torch.zeros(2, 1, dtype=T)
    for steps, expected in ((6, [1, 2, 3, 3, 2, 1]), (2, [1, 1]), (10, [1, 2] + 8 * [3])):
        used.clear()
        solvers.mr_sampler(gaussian(), x0, times=even_clock(GAUSSIAN_PATH, steps), order=3)
        assert used == expected


@pytest.mark.parametrize("nu", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_onto_zero_noise_ends_on_the_data_prediction(form: str, nu: float) -> None:
    x0 = GAUSSIAN_PATH.sample_prior((4, 1), generator=torch.Generator().manual_seed(0), dtype=T)
    for steps in (1, 5, 12):
        run = solvers.mr_sampler(gaussian(), x0, steps=steps, form=form, nu=nu)
        torch.testing.assert_close(run.end, gaussian().data(run.states[-2], run.times[-2]))


def test_each_sample_reverts_to_its_own_centre() -> None:
    """A batch with five centres is five runs with one centre each."""
    predict = lambda path: FunctionField(lambda x, t: torch.tanh(x) * t, path, predicts="noise")
    x0, grid = CENTER + SIGMA_INF * randn(5, 3), even_clock(PATH, 8)
    together = solvers.mr_sampler(predict(PATH), x0, times=grid).end
    for i in range(5):
        alone = solvers.mr_sampler(predict(paths.mean_reverting(CENTER[i], SIGMA_INF)), x0[i : i + 1], times=grid).end
        torch.testing.assert_close(together[i : i + 1], alone)


def test_conditions_generator_and_dtype_are_respected() -> None:
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, t, mu):
            seen.append(mu)
            return x - mu

    mu = torch.zeros(3, 2)
    field = NetworkField(Net(), paths.mean_reverting(mu, SIGMA_INF), predicts="data")
    draw = lambda: torch.Generator().manual_seed(7)
    runs = [
        solvers.mr_sampler(field, mu + 0.1, steps=5, nu=1.0, generator=draw(), keep=keep, mu=mu)
        for keep in (True, False)
    ]
    assert all(value is mu for value in seen)
    assert len(seen) == 10
    assert torch.equal(runs[0].end, runs[1].end)
    assert len(runs[1]) == 2
    assert runs[0].end.dtype == torch.float32


@pytest.mark.bad_input
class TestBadInput:
    x = torch.zeros(5, 3, dtype=T)
    field = FunctionField(lambda x, t: x, PATH, predicts="data")

    def test_sampler(self) -> None:
        with pytest.raises(TypeError, match="field must be a Field"):
            solvers.mr_sampler(lambda x, t: x, self.x, steps=3)
        with pytest.raises(ValueError, match="order must be 1, 2 or 3, got 4"):
            solvers.mr_sampler(self.field, self.x, steps=3, order=4)
        with pytest.raises(ValueError, match="form must be one of 'data', 'noise'"):
            solvers.mr_sampler(self.field, self.x, steps=3, form="velocity")
        with pytest.raises(ValueError, match="nu must not be negative"):
            solvers.mr_sampler(self.field, self.x, steps=3, nu=-1.0)
        with pytest.raises(ValueError, match="times must increase"):
            solvers.mr_sampler(self.field, self.x, times=torch.tensor([0.9, 0.1], dtype=T))
        noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match="data cannot be computed"):
            solvers.mr_sampler(noise, self.x, steps=3)

    def test_step(self) -> None:
        step = solvers.mr_step
        with pytest.raises(ValueError, match="one length >= 1, got 0 and 0"):
            step(PATH, self.x, [], [], 0.5)
        with pytest.raises(ValueError, match="one length >= 1, got 1 and 2"):
            step(PATH, self.x, [self.x], [0.3, 0.2], 0.5)
        with pytest.raises(ValueError, match="u must come after times"):
            step(PATH, self.x, [self.x], [0.6], 0.5)
        with pytest.raises(ValueError, match="u must come after times"):
            step(PATH, self.x, [self.x, self.x], [0.3, 0.4], 0.5)
        with pytest.raises(ValueError, match="alpha must not vanish at times"):
            step(paths.linear(), self.x, [self.x], [0.0], 0.5)
        with pytest.raises(ValueError, match="noise is needed"):
            step(PATH, self.x, [self.x], [0.3], 0.5, nu=1.0)
        with pytest.raises(ValueError, match="nu must not be negative"):
            step(PATH, self.x, [self.x], [0.3], 0.5, nu=-0.5)
        with pytest.raises(ValueError, match="needs form='data'"):
            step(PATH, self.x, [self.x], [0.3], 1.0, form="noise")

    def test_angular(self) -> None:
        with pytest.raises(TypeError, match="path must be mean reverting, got a Linear schedule"):
            solvers.angular_velocity(paths.linear(), self.x, self.x, 0.5)
        with pytest.raises(ValueError, match="must have the same shape"):
            solvers.data_from_angular(PATH, self.x, self.x[:2], 0.5)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            solvers.angular_velocity(PATH, self.x, self.x, 1.5)
