"""Conditional scores against exact posteriors, and what the replacement trick gets wrong."""

import math

import pytest
import torch
from torch import Tensor

from flowlib import control, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import MixtureField

A = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
Y = torch.tensor([0.8], dtype=torch.float64)
NOISE = 0.3


def prior() -> GaussianMixture:
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [0.5, -1.5]], dtype=torch.float64)
    root = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariances = 0.2 * root @ root.mT + 0.1 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(means, covariances, torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64))


def log_likelihood(path: paths.GaussianPath):
    """log p(y | x_t) of the mixture, as the ratio of two exact densities plus a constant."""
    posterior, unconditional = MixtureField(prior().condition(A, Y, NOISE), path), MixtureField(prior(), path)
    return lambda x, t: _log_prob(posterior, x, t) - _log_prob(unconditional, x, t)


def _log_prob(field: MixtureField, x: Tensor, t: Tensor) -> Tensor:
    """The density of p_t from its components, differentiable."""
    alpha, sigma = field.path.schedule.alpha(t), field.path.schedule.sigma(t)
    law = field.distribution
    eye = torch.eye(2, dtype=x.dtype)
    normals = [
        torch.distributions.MultivariateNormal(alpha * m, alpha**2 * c + sigma**2 * eye).log_prob(x) + w.log()
        for w, m, c in zip(law.weights, law.means, law.covariances, strict=True)
    ]
    return torch.logsumexp(torch.stack(normals), 0)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "linear"])
def test_bayes_rule_for_scores(name: str) -> None:
    """Prior score plus the gradient of log p(y | x_t) is the exact score of the posterior mixture."""
    path = paths.by_name(name)
    field = control.conditioned(MixtureField(prior(), path), log_likelihood(path))
    exact = MixtureField(prior().condition(A, Y, NOISE), path)
    x = 2 * torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0.2, 0.6, 0.95):
        torch.testing.assert_close(field.score(x, t), exact.score(x, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(field.velocity(x, t), exact.velocity(x, t), rtol=1e-9, atol=1e-9)


def test_conditional_reverse_sde_samples_the_posterior() -> None:
    path, n = paths.vp(), 3000
    field = control.conditioned(MixtureField(prior(), path), log_likelihood(path))
    posterior = prior().condition(A, Y, NOISE)
    generator = torch.Generator().manual_seed(2)
    x0 = MixtureField(posterior, path).sample(n, 0.0, generator=generator)
    times = 1 - torch.linspace(1, 1e-2, 301, dtype=torch.float64) ** 2
    x = solvers.predictor_corrector(
        field, x0, times=times, predictor="ancestral", corrector_steps=0, generator=generator, keep=False
    ).end
    error = (x.mean(0) - posterior.mean).abs() / (posterior.covariance.diagonal() / n).sqrt()
    assert float(error.max()) < 4
    torch.testing.assert_close(torch.cov(x.T), posterior.covariance, rtol=0.08, atol=0.03)


def gaussian_prior(correlation: float) -> GaussianMixture:
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    return GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), covariance[None])


def inpaint(path: paths.GaussianPath, correlation: float, corrector_steps: int, n: int, seed: int) -> Tensor:
    """The second coordinate given that the first is 2, by replacement."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    callback = control.replacement(known, torch.tensor([True, False]), path, generator=generator)
    x0 = path.sample_prior((n, 2), generator=generator, dtype=torch.float64)
    return solvers.predictor_corrector(
        MixtureField(gaussian_prior(correlation), path), x0, steps=100, corrector_steps=corrector_steps, snr=0.3,
        generator=generator, callback=callback, keep=False,
    ).end[:, 1]  # fmt: skip


def test_replacement_is_exact_for_independent_coordinates_and_biased_for_dependent_ones() -> None:
    """The conditional mean is 2 rho; replacement pulls it towards the prior mean, and correctors help."""
    path, n = paths.ve(0.02, 10.0), 4000
    independent = inpaint(path, 0.0, 1, n, 3)
    assert abs(float(independent.mean())) < 4 / math.sqrt(n)
    assert float(independent.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / n) + 0.05)
    means = [float(inpaint(path, 0.9, steps, n, 4).mean()) for steps in (0, 4)]
    error = [1.8 - mean for mean in means]
    assert error[0] > 10 * math.sqrt((1 - 0.81) / n)  # far beyond the standard error
    assert abs(error[1]) < error[0] / 2


def test_replacement_overwrites_the_known_part_with_the_right_law_and_nothing_else() -> None:
    path, t, n = paths.vp(), torch.tensor(0.6, dtype=torch.float64), 20_000
    known = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    mask = torch.tensor([True, False, True, False])
    x = torch.full((n, 4), 9.0, dtype=torch.float64)
    out = control.replacement(known, mask, path, generator=torch.Generator().manual_seed(5))(0, t, x)
    assert torch.equal(out[:, ~mask], x[:, ~mask])
    alpha, sigma = path.schedule.alpha(t), path.schedule.sigma(t)
    torch.testing.assert_close(out[:, mask].mean(0), alpha * known[0, mask], rtol=0, atol=4 / math.sqrt(n))
    torch.testing.assert_close(out[:, mask].std(0), sigma.expand(2), rtol=0.03, atol=0)


def test_replacement_in_a_basis_is_replacement_of_rotated_states() -> None:
    """With the same noise, rotate, replace, rotate back."""
    basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64))
    path, t = paths.vp(), torch.tensor(0.6, dtype=torch.float64)
    known, x = torch.randn(2, 5, 1, 2, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    mask = torch.tensor([True, True, False, False])
    out = control.replacement(known, mask, path, basis=basis, generator=torch.Generator().manual_seed(8))(0, t, x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    fresh = path.interpolate(noise, known, t)
    rotated = torch.where(mask, fresh.flatten(1) @ basis.T, x.flatten(1) @ basis.T)
    torch.testing.assert_close(out.flatten(1), rotated @ basis, rtol=1e-12, atol=1e-12)


@pytest.mark.bad_input
def test_bad_input() -> None:
    known, mask = torch.zeros(1, 2), torch.tensor([True, False])
    with pytest.raises(TypeError, match="mask must be boolean"):
        control.replacement(known, mask.float(), paths.vp())
    with pytest.raises(ValueError, match=r"mask must have shape \[2\], got \[3\]"):
        control.replacement(known, torch.ones(3).bool(), paths.vp())
    with pytest.raises(ValueError, match="basis must be an orthonormal matrix"):
        control.replacement(known, mask, paths.vp(), basis=2 * torch.eye(2))
    with pytest.raises(TypeError, match="field must be a Field"):
        control.conditioned(lambda x, t: x, lambda x, t: x.sum(1))


@pytest.mark.bad_input
def test_silent_broadcasting_is_refused() -> None:
    known, mask = torch.zeros(3, 2), torch.tensor([True, False])
    replace, t = control.replacement(known, mask, paths.vp()), torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"known has shape \[3, 2\], which does not fit states \[4, 2\]"):
        replace(0, t, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"does not fit states \[3, 1\]"):
        replace(0, t, torch.zeros(3, 1))
    with pytest.raises(TypeError, match=r"dtype of the states, torch.float64; got torch.float32"):
        replace(0, t.double(), torch.zeros(3, 2, dtype=torch.float64))
    pulled = control.conditioned(MixtureField(prior(), paths.vp()), lambda x, t: -x.square())
    with pytest.raises(ValueError, match=r"log_likelihood must return shape \[5\], got \[5, 2\]"):
        pulled.score(torch.zeros(5, 2, dtype=torch.float64), 0.5)
