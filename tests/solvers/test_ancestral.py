"""Ancestral sampling: the exact chain on Gaussian data, DDIM at one end, DDPM at the other."""

import itertools
import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField

PATHS = {
    "linear": paths.linear(),
    "cosine": paths.cosine(),
    "vp": paths.vp(),
    "ve": paths.ve(0.02, 10.0),
    "edm": paths.edm(0.02, 10.0),
    "mean_reverting": paths.mean_reverting(center=0.4),
}
MEAN = torch.tensor([0.8, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.9]], dtype=torch.float64)


def gaussian(path: paths.GaussianPath) -> MixtureField:
    return MixtureField(GaussianMixture(MEAN[None], COVARIANCE[None]), path)


def mixture(path: paths.GaussianPath) -> MixtureField:
    means = torch.tensor([[-1.2], [0.9]], dtype=torch.float64)
    return MixtureField(GaussianMixture(means, 0.3, torch.tensor([0.4, 0.6]).double()), path)


def chain_by_hand(path: paths.GaussianPath, grid: torch.Tensor, eta: float, variance: str) -> tuple:
    """Mean and covariance of the chain, from the formulas of the papers in alpha and sigma alone."""
    identity, center = torch.eye(2, dtype=torch.float64), float(path.center)
    mean, covariance = torch.full((2,), center).double(), path.prior_std**2 * identity
    for t, u in itertools.pairwise(grid.unbind()):
        (alpha_t, alpha_u), (sigma_t, sigma_u) = (
            [function(s) for s in (t, u)] for function in (path.schedule.alpha, path.schedule.sigma)
        )
        forward = sigma_t**2 - (alpha_t / alpha_u) ** 2 * sigma_u**2
        kept = eta**2 * forward * sigma_u**2 / sigma_t**2
        # x1 = m + gain (x - mean of x_t): regression of data on the noisy state
        gain = alpha_t * COVARIANCE @ torch.linalg.inv(alpha_t**2 * COVARIANCE + sigma_t**2 * identity)
        spread = (sigma_u**2 - kept).clamp_min(0).sqrt()
        matrix = alpha_u * gain + spread / sigma_t * (identity - alpha_t * gain)
        mean_t = alpha_t * MEAN + (1 - alpha_t) * center
        mean_u = alpha_u * MEAN + (1 - alpha_u) * center
        mean = mean_u + matrix @ (mean - mean_t)
        fresh = kept if variance == "posterior" else eta**2 * forward
        fresh = fresh if sigma_u > 0 else 0 * fresh
        covariance = matrix @ covariance @ matrix.T + fresh * identity
    return mean, covariance


def chain_of_sampler(path, grid: torch.Tensor, eta: float, variance: str, monkeypatch) -> tuple:
    """The same moments from the sampler itself: each step is affine in the state and in the noise it draws."""
    field = gaussian(path)
    mean, covariance = torch.full((2,), float(path.center)).double(), path.prior_std**2 * torch.eye(2).double()
    basis = torch.cat([torch.zeros(1, 2), torch.eye(2), torch.zeros(1, 2)]).double()
    noise = torch.zeros(4, 2, dtype=torch.float64)
    noise[3, 0] = 1.0
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    for pair in grid.unfold(0, 2, 1):
        out = solvers.ancestral(field, basis, times=pair, eta=eta, variance=variance).end
        matrix, fresh = (out[1:3] - out[0]).T, out[3] - out[0]
        mean = matrix @ mean + out[0]
        covariance = matrix @ covariance @ matrix.T + fresh[0] ** 2 * torch.eye(2).double()
    return mean, covariance


@pytest.mark.parametrize("variance", ["posterior", "forward"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", sorted(PATHS))
def test_ancestral_chain_on_a_gaussian_is_the_analytic_chain(name, eta, variance, monkeypatch) -> None:
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    expected = chain_by_hand(PATHS[name], grid, eta, variance)
    measured = chain_of_sampler(PATHS[name], grid, eta, variance, monkeypatch)
    for mine, theirs in zip(measured, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_chain_tends_to_the_data_at_first_order(eta: float) -> None:
    errors = []
    for steps in (100, 200, 400):
        _, covariance = chain_by_hand(paths.cosine(), torch.linspace(0, 1, steps + 1).double(), eta, "posterior")
        errors.append(float((covariance - COVARIANCE).abs().max()))
    assert errors[-1] < 0.02
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_without_noise_it_is_ddim(name: str) -> None:
    field, x0 = gaussian(PATHS[name]), PATHS[name].prior_std * torch.randn(10, 2, dtype=torch.float64)
    ours = solvers.ancestral(field, x0, steps=9, eta=0.0).states
    torch.testing.assert_close(ours, solvers.ode(field, x0, steps=9, method="ddim").states, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_full_noise_draws_from_the_posterior(name: str) -> None:
    path = PATHS[name]
    field, x = gaussian(path), torch.randn(10, 2, dtype=torch.float64)
    t, u = torch.tensor([0.3, 0.6], dtype=torch.float64)
    draw = lambda: torch.Generator().manual_seed(5)
    out = solvers.ancestral(field, x, times=torch.stack([t, u]), generator=draw()).end
    a, b, variance = path.posterior(t, u)
    z = torch.randn(x.shape, generator=draw(), dtype=x.dtype)
    expected = a * x + b * field.data(x, t) + (1 - a - b) * path.center + variance.sqrt() * z
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("eta", "variance"), [(0.5, "posterior"), (1.0, "posterior"), (1.0, "forward")])
def test_every_noise_level_reaches_the_data_law(eta: float, variance: str) -> None:
    n, field = 20_000, mixture(paths.cosine())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x = solvers.ancestral(field, x0, steps=400, eta=eta, variance=variance, generator=generator, keep=False).end
    target = field.distribution
    second = float(target.covariance + target.mean**2)
    assert abs(float(x.mean() - target.mean)) < 4 * float(x.std()) / math.sqrt(n) + 0.003
    assert abs(float((x**2).mean()) - second) < 4 * float((x**2).std()) / math.sqrt(n) + 0.01


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine()])
def test_both_ends_are_regular(path: paths.GaussianPath) -> None:
    """From alpha = 0 the first prediction is the mean; onto sigma = 0 the last step is the prediction."""
    field, x0 = mixture(path), torch.randn(6, 1, dtype=torch.float64)
    for variance in ("posterior", "forward"):
        one = solvers.ancestral(field, x0, steps=1, variance=variance).end
        torch.testing.assert_close(one, field.distribution.mean.expand(6, 1))
        run = solvers.ancestral(field, x0, steps=7, variance=variance)
        torch.testing.assert_close(run.end, field.data(run.states[-2], run.times[-2]))
        assert torch.isfinite(run.states).all()


def test_one_step_agrees_with_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    levels = torch.cumprod(1 - betas, 0)
    path = paths.vp(0.1, 20.0)
    clock = path.schedule.time_of_log_snr(torch.log(levels / (1 - levels)))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = torch.randn(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    field = FunctionField(lambda x, t: eps, path, predicts="noise")
    draw = lambda: torch.Generator().manual_seed(3)

    ddim = diffusers.DDIMScheduler(trained_betas=betas.numpy(), clip_sample=False, set_alpha_to_one=False)
    ddim.set_timesteps(50)
    for i, eta in ((600, 0.0), (600, 0.7), (600, 1.0), (100, 1.0)):
        theirs = ddim.step(eps, i, x, eta=eta, generator=draw()).prev_sample
        ours = solvers.ancestral(field, x, times=clock[[i, i - 20]], eta=eta, generator=draw()).end
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for name, variance in (("fixed_small", "posterior"), ("fixed_large", "forward")):
        ddpm = diffusers.DDPMScheduler(trained_betas=betas.numpy(), clip_sample=False, variance_type=name)
        for i in (30, 600, 990):
            theirs = ddpm.step(eps, i, x, generator=draw()).prev_sample
            ours = solvers.ancestral(field, x, times=clock[[i, i - 1]], variance=variance, generator=draw()).end
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_evaluations_seeds_and_conditions() -> None:
    seen = []

    def predict(x, t, y):
        seen.append(y)
        return torch.zeros_like(x)

    field = FunctionField(predict, paths.linear(), predicts="data")
    runs = [
        solvers.ancestral(field, torch.ones(3, 2), steps=8, generator=torch.Generator().manual_seed(2), y=7)
        for _ in range(2)
    ]
    assert torch.equal(runs[0].states, runs[1].states)
    assert runs[0].nfe == 8 == len(seen) // 2
    assert set(seen) == {7}
    short = solvers.ancestral(
        field, torch.ones(3, 2), steps=8, generator=torch.Generator().manual_seed(2), keep=False, y=7
    )
    assert len(short) == 2
    assert torch.equal(short.end, runs[0].end)


@pytest.mark.bad_input
class TestBadInput:
    field = mixture(paths.linear())
    x = torch.zeros(3, 1, dtype=torch.float64)

    def test_options(self) -> None:
        with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
            solvers.ancestral(self.field, self.x, steps=3, eta=1.5)
        with pytest.raises(ValueError, match="variance must be one of 'posterior', 'forward'"):
            solvers.ancestral(self.field, self.x, steps=3, variance="large")
        with pytest.raises(ValueError, match="times must increase"):
            solvers.ancestral(self.field, self.x, times=torch.tensor([0.9, 0.1]).double())

    def test_field(self) -> None:
        with pytest.raises(TypeError, match="data prediction is needed"):
            solvers.ancestral(lambda x, t: x, self.x, steps=3)
        noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match="data cannot be computed"):
            solvers.ancestral(noise, self.x, steps=3)
