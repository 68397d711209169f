"""Likelihoods along the flow against the density that is known."""

import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture, Normal
from flowlib.fields import MixtureField


def mixture() -> GaussianMixture:
    root = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = 1.5 * torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return GaussianMixture(means, root @ root.mT + 0.2 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "steps", "tolerance"), [("rk4", 60, 1e-4), ("adaptive", None, 1e-4), ("heun", 300, 1e-3)]
)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_likelihood_of_an_exact_field_is_the_density(name: str, method: str, steps, tolerance: float) -> None:
    x = mixture().sample(40, generator=torch.Generator().manual_seed(2))
    field = MixtureField(mixture(), paths.by_name(name))
    log_prob, trajectory = solvers.log_likelihood(field, x, steps=steps, method=method)
    assert float((log_prob - mixture().log_prob(x)).abs().max()) < tolerance
    assert float(trajectory.times[0]) == 1.0
    assert trajectory.nfe > 0


def test_vp_needs_its_exact_prior_for_the_last_digits() -> None:
    """N(0, I) stands in for p_0 of the VP path; with the exact p_0 the error is the solver's alone."""
    path = paths.vp()
    field = MixtureField(mixture(), path)
    x = mixture().sample(40, generator=torch.Generator().manual_seed(2))
    times = 1 - torch.linspace(0, 1, 81, dtype=torch.float64) ** 2  # finer where the variance starts

    class Exact:
        def log_prob(self, y: torch.Tensor) -> torch.Tensor:
            return field.log_prob(y, 0.0)

    truth = mixture().log_prob(x)
    standard, _ = solvers.log_likelihood(field, x, times=times)
    exact, _ = solvers.log_likelihood(field, x, times=times, prior=Exact())
    assert abs(float((standard - truth).mean())) < 1e-2
    assert float((exact - truth).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve"])
def test_adaptive_likelihood_of_diffusion_paths_is_the_density(name: str) -> None:
    """With the exact p_0 as prior; VE ends at p_1 = data smoothed by sigma_min, which is its density there."""
    path = paths.ve(0.05, 20.0) if name == "ve" else paths.by_name(name)
    field = MixtureField(mixture(), path)
    x = mixture().sample(20, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([0.0, 1.0 if name == "ve" else 0.99999], dtype=torch.float64)

    class Exact:
        def log_prob(self, y: torch.Tensor) -> torch.Tensor:
            return field.log_prob(y, 0.0)

    log_prob, _ = solvers.log_likelihood(field, x, times=times, method="adaptive", prior=Exact(), rtol=1e-7, atol=1e-7)
    truth = field.log_prob(x, times[-1])
    assert float((log_prob - truth).abs().max()) < 1e-4
    if name != "ve":
        assert float((truth - mixture().log_prob(x)).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["vp", "sub_vp"])
def test_encoding_and_decoding_return_the_data(name: str) -> None:
    field = MixtureField(mixture(), paths.by_name(name))
    x = mixture().sample(20, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([0.0, 0.999], dtype=torch.float64)
    tight = {"times": times, "method": "adaptive", "rtol": 1e-9, "atol": 1e-9}
    code = solvers.invert(field, x, **tight).end
    assert float((solvers.ode(field, code, **tight).end - x).abs().max()) < 1e-5


def test_hutchinson_trace_is_unbiased() -> None:
    field = MixtureField(mixture(), paths.linear())
    x = mixture().sample(5, generator=torch.Generator().manual_seed(3))
    t = torch.tensor(0.5, dtype=torch.float64)
    v, exact = solvers.divergence(field.function("velocity"), x, t)
    torch.testing.assert_close(v, field.velocity(x, 0.5))
    signs = torch.randint(0, 2, (2000, *x.shape), generator=torch.Generator().manual_seed(4)).double() * 2 - 1
    single = torch.stack([solvers.divergence(field.function("velocity"), x, t, probes=s[None])[1] for s in signs[:500]])
    standard_error = single.std(0) / math.sqrt(len(single))
    assert ((single.mean(0) - exact).abs() < 4 * standard_error).all()
    _, pooled = solvers.divergence(field.function("velocity"), x, t, probes=signs[:500])
    torch.testing.assert_close(pooled, single.mean(0))


def test_hutchinson_likelihood_averages_to_the_exact_one() -> None:
    field = MixtureField(mixture(), paths.linear())
    x = mixture().sample(1, generator=torch.Generator().manual_seed(5)).repeat(400, 1)
    generator = torch.Generator().manual_seed(6)
    estimates, _ = solvers.log_likelihood(field, x, steps=30, trace="hutchinson", generator=generator)
    assert float(estimates.std()) > 0
    error = abs(float(estimates.mean() - mixture().log_prob(x[:1])))
    assert error < 4 * float(estimates.std()) / 20 + 1e-3


def test_divergence_of_image_shaped_states() -> None:
    scale = torch.arange(1.0, 17.0).reshape(1, 4, 4)
    x = torch.randn(3, 1, 4, 4)
    _, trace = solvers.divergence(lambda x, t: scale * x, x, torch.tensor(0.0))
    torch.testing.assert_close(trace, torch.full((3,), float(scale.sum())))


def test_center_of_a_mean_reverting_path_is_respected() -> None:
    mu = torch.tensor([3.0, -1.0], dtype=torch.float64)
    target = GaussianMixture(mu + mixture().means, 0.3)
    field = MixtureField(target, paths.mean_reverting(mu, 1.0))
    x = target.sample(20, generator=torch.Generator().manual_seed(7))
    times = 1 - torch.linspace(0, 1, 81, dtype=torch.float64) ** 2
    log_prob, _ = solvers.log_likelihood(field, x, times=times)
    assert float((log_prob - target.log_prob(x)).abs().mean()) < 0.02


@pytest.mark.bad_input
def test_bad_input() -> None:
    field = MixtureField(mixture(), paths.linear())
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="trace must be one of 'exact', 'hutchinson'"):
        solvers.log_likelihood(field, x, steps=4, trace="skilling")
    with pytest.raises(ValueError, match="probes must be positive"):
        solvers.log_likelihood(field, x, steps=4, probes=0)
    with pytest.raises(ValueError, match="method must be one of"):
        solvers.log_likelihood(field, x, steps=4, method="ddim")
    with pytest.raises(ValueError, match="event shape"):
        solvers.log_likelihood(field, x, steps=4, prior=Normal(3))
