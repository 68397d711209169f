"""Predictors and correctors: exact laws for Gaussian data, consistency, a peer, and the callback."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import MixtureField

PATHS = {"vp": paths.vp(), "sub_vp": paths.sub_vp(), "ve": paths.ve(0.02, 6.0)}
V = 0.3


def gaussian(name: str, variance: float = V) -> MixtureField:
    return MixtureField(GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), variance), PATHS[name])


def mixture(name: str) -> MixtureField:
    law = GaussianMixture(torch.tensor([[-1.2], [0.9]]).double(), 0.3, torch.tensor([0.4, 0.6]).double())
    return MixtureField(law, PATHS[name])


def variance_at(path: paths.GaussianPath, t: Tensor) -> float:
    return float(path.schedule.alpha(t) ** 2 * V + path.schedule.sigma(t) ** 2)


@pytest.mark.parametrize("e", [0.1, 0.8, 1.5])
def test_stationary_variance_of_the_corrector_is_1_over_1_minus_half_the_step(e: float) -> None:
    """p_t of N(0, 1) data on the VP path is N(0, 1) at every t."""
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x = solvers.langevin(gaussian("vp", 1.0), x, 0.5, steps=60, step_size=e, generator=generator)
    expected = 1 / (1 - e / 2)
    assert abs(float(x.var()) / expected - 1) < 4 * math.sqrt(2 / n)


def test_small_langevin_steps_leave_the_law_invariant() -> None:
    field, n = mixture("vp"), 20_000
    generator = torch.Generator().manual_seed(1)
    x = field.sample(n, 0.8, generator=generator)
    moved = solvers.langevin(field, x, 0.8, steps=100, step_size=0.005, generator=generator)
    assert float((moved - x).abs().mean()) > 0.3  # it does move
    grid = torch.linspace(-2, 2, 9, dtype=torch.float64)
    before, after = ((y < grid).double().mean(0) for y in (field.sample(n, 0.8, generator=generator), moved))
    assert float((before - after).abs().max()) < 4 * math.sqrt(0.5 / n)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_signal_to_noise_rule(name: str) -> None:
    """e = 2 a^2 (snr |z| / |s|)^2 with norms averaged over the batch, rebuilt from the same noise."""
    field = mixture(name)
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t, u = torch.tensor([0.2, 0.6], dtype=torch.float64)
    out = solvers.predictor_corrector(
        field, x, times=torch.stack([t, u]), predictor="none", snr=0.2, generator=torch.Generator().manual_seed(3)
    ).end
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    s, schedule = field.score(x, t), field.path.schedule
    a2 = float((schedule.alpha(t) / schedule.alpha(u)) ** 2)
    assert (a2 == 1) == (name == "ve")
    assert 0 < a2 <= 1
    e = 2 * a2 * (0.2 * z.abs().mean() / s.abs().mean()) ** 2
    torch.testing.assert_close(out, x + e * s + (2 * e).sqrt() * z, rtol=1e-13, atol=1e-13)


def predicted(field: MixtureField, predictor: str, t: Tensor, u: Tensor) -> tuple[float, float]:
    """Gain and noise variance of a predictor step for Gaussian data, from the definitions."""
    schedule, s = field.path.schedule, -1 / variance_at(field.path, t)
    alpha_t, alpha_u, sigma_t, sigma_u = (float(f(w)) for f in (schedule.alpha, schedule.sigma) for w in (t, u))
    a = alpha_t / alpha_u
    c2 = sigma_t**2 - a**2 * sigma_u**2
    if predictor == "euler_maruyama":
        f, g2 = (float(y) for y in field.path.drift_diffusion(t))
        h = float(u - t)
        return 1 + h * (g2 * s - f), h * g2
    if predictor == "reverse_diffusion":
        return 1 - (a - 1) + c2 * s, c2
    if predictor == "probability_flow":
        return 1 - (a - 1) + c2 * s / 2, 0.0
    if predictor == "none":
        return 1.0, 0.0
    # ancestral: the mean of x_u given x_t and x_1 = (1 + sigma_t^2 s) x / alpha_t, by Bayes' rule on two normals
    data = (1 + sigma_t**2 * s) / alpha_t
    precision = 1 / sigma_u**2 + a**2 / c2
    return (alpha_u * data / sigma_u**2 + a / c2) / precision, 1 / precision


@pytest.mark.parametrize("predictor", solvers.PREDICTORS)
@pytest.mark.parametrize("name", sorted(PATHS))
def test_law_for_gaussian_data_is_the_variance_recursion(name: str, predictor: str) -> None:
    """Every update is affine in x and noise, so the variance at the end is known exactly."""
    field, n, e = gaussian(name), 50_000, 0.01
    times = torch.linspace(0.3, 0.9, 7, dtype=torch.float64)
    variance = variance_at(field.path, times[0])
    for t, u in itertools.pairwise(times):
        for _ in range(2):
            variance = (1 - e / variance_at(field.path, t)) ** 2 * variance + 2 * e
        gain, noise = predicted(field, predictor, t, u)
        variance = gain**2 * variance + (noise if u < times[-1] else 0.0)
    generator = torch.Generator().manual_seed(4)
    x0 = field.sample(n, 0.3, generator=generator)
    out = solvers.predictor_corrector(
        field, x0, times=times, predictor=predictor, corrector_steps=2, step_size=e, generator=generator
    )
    assert out.nfe == 6 * (2 + (predictor != "none"))
    assert abs(float(out.end.square().mean()) / variance - 1) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion", "ancestral", "probability_flow"])
@pytest.mark.parametrize("name", sorted(PATHS))
def test_predictors_converge_to_the_data(name: str, predictor: str) -> None:
    field, n = mixture(name), 10_000
    generator = torch.Generator().manual_seed(5)
    x0 = field.sample(n, 0.0, generator=generator)
    out = solvers.predictor_corrector(
        field, x0, steps=400, predictor=predictor, corrector_steps=0, generator=generator, keep=False
    )
    law = field.distribution
    assert out.nfe == 400
    assert abs(float(out.end.mean() - law.mean)) < 4 * float(out.end.std()) / math.sqrt(n) + 0.01
    assert float(out.end.var()) == pytest.approx(float(law.covariance), rel=0.05)


def test_last_step_is_the_noiseless_mean() -> None:
    field = mixture("ve")
    x0 = 6 * torch.randn(4, 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    options = {"steps": 5, "predictor": "ancestral", "corrector_steps": 0}
    mean, draw = (
        solvers.predictor_corrector(
            field, x0, denoise=denoise, generator=torch.Generator().manual_seed(7), **options
        ).states
        for denoise in (True, False)
    )
    torch.testing.assert_close(mean[:-1], draw[:-1], rtol=0, atol=0)
    t, u, schedule = torch.tensor(0.8).double(), torch.tensor(1.0).double(), field.path.schedule
    c2 = schedule.sigma(t) ** 2 - schedule.sigma(u) ** 2
    torch.testing.assert_close(mean[-1], mean[-2] + c2 * field.score(mean[-2], t))
    assert float((draw[-1] - mean[-1]).abs().max()) > 0


def test_one_step_agrees_with_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    levels = 50
    scheduler = diffusers.ScoreSdeVeScheduler(
        num_train_timesteps=levels, sigma_min=0.02, sigma_max=6.0, snr=0.16, sampling_eps=1e-5
    )
    law = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), 0.1)
    field = MixtureField(law, PATHS["ve"])
    x = 3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(8))
    grid = torch.linspace(0, 1, levels)  # sigma_i of the peer is sigma(t) on this grid, reversed
    i = 30
    t, u = grid[levels - 1 - i], grid[levels - i]
    torch.testing.assert_close(field.path.schedule.sigma(t), scheduler.discrete_sigmas[i], rtol=1e-5, atol=0)
    theirs = scheduler.step_correct(field.score(x, t), x, generator=torch.Generator().manual_seed(9)).prev_sample
    generator = torch.Generator().manual_seed(9)
    corrected = solvers.langevin(field, x, t, steps=1, snr=0.16, generator=generator)
    torch.testing.assert_close(corrected, theirs, rtol=1e-5, atol=1e-5)
    timestep = (i + 0.5) / (levels - 1)  # the peer rounds down to i
    theirs = scheduler.step_pred(field.score(x, t), timestep, x, generator=torch.Generator().manual_seed(9))
    ours = [
        solvers.predictor_corrector(
            field, x, times=torch.stack([t, u]), corrector_steps=0, denoise=denoise,
            generator=torch.Generator().manual_seed(9),
        ).end
        for denoise in (False, True)
    ]  # fmt: skip
    torch.testing.assert_close(ours[0], theirs.prev_sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs.prev_sample_mean, rtol=1e-5, atol=1e-5)


def test_callback_sees_every_update_and_may_replace_the_state() -> None:
    seen = []

    def callback(i: int, t: Tensor, x: Tensor) -> Tensor:
        seen.append((i, round(float(t), 3)))
        return torch.zeros_like(x)

    x0 = torch.ones(3, 1, dtype=torch.float64)
    out = solvers.predictor_corrector(mixture("ve"), x0, steps=2, corrector_steps=2, callback=callback)
    assert seen == [(0, 0.0), (0, 0.0), (0, 0.5), (1, 0.5), (1, 0.5), (1, 1.0)]
    assert torch.equal(out.states[1:], torch.zeros(2, 3, 1).double())


def test_center_and_shape_and_dtype_are_respected() -> None:
    mu = torch.tensor([3.0, -1.0])
    law = GaussianMixture(mu[None], 0.2)
    shifted = MixtureField(law, paths.mean_reverting(mu, 1.0))
    plain = MixtureField(GaussianMixture(torch.zeros(1, 2), 0.2), paths.mean_reverting(0.0, 1.0))
    x0 = torch.randn(5, 2, generator=torch.Generator().manual_seed(10))
    ends = [
        solvers.predictor_corrector(
            field, x0 + shift, steps=20, predictor="ancestral", generator=torch.Generator().manual_seed(11)
        ).end
        for field, shift in ((plain, 0.0), (shifted, mu))
    ]
    assert ends[0].dtype == torch.float32
    torch.testing.assert_close(ends[1], ends[0] + mu, rtol=1e-4, atol=1e-4)


@pytest.mark.bad_input
class TestBadInput:
    x = torch.zeros(2, 1, dtype=torch.float64)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"predictor": "heun"}, "predictor must be one of 'euler_maruyama'"),
            ({"corrector_steps": -1}, "corrector_steps must be an int of at least 0"),
            ({"snr": 0.0}, "snr must be positive"),
            ({"step_size": -1.0}, "step_size must be positive"),
        ],
    )
    def test_options(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            solvers.predictor_corrector(mixture("vp"), self.x, steps=4, **options)

    def test_times(self) -> None:
        with pytest.raises(ValueError, match="times must increase"):
            solvers.predictor_corrector(mixture("vp"), self.x, times=torch.tensor([1.0, 0.0]).double())
        linear = MixtureField(mixture("vp").distribution, paths.linear())
        with pytest.raises(ValueError, match="forward SDE is singular at t = 0"):
            solvers.predictor_corrector(linear, self.x, steps=4)

    def test_fields(self) -> None:
        with pytest.raises(TypeError, match="field must be a Field"):
            solvers.predictor_corrector(lambda x, t: x, self.x, steps=4)
        with pytest.raises(TypeError, match="field must be a Field"):
            solvers.langevin(lambda x, t: x, self.x, 0.5, steps=4)
