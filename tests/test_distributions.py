"""Exact distributions: densities against scipy and moments against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flowlib.distributions import Empirical, GaussianMixture, Normal, short_softmax, short_sum


def full_mixture(components: int = 3, dim: int = 2, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(components, dim, dim, generator=generator, dtype=torch.float64)
    covariances = root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)
    means = 2 * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    weights = torch.arange(1, components + 1, dtype=torch.float64)
    return GaussianMixture(means, covariances, weights / weights.sum())


def test_full_density_agrees_with_scipy() -> None:
    mixture = full_mixture(dim=4)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = sum(
        float(w) * stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    np.testing.assert_allclose(mixture.log_prob(x).numpy(), np.log(expected), rtol=1e-11)


def test_isotropic_diagonal_and_full_covariances_are_one_family() -> None:
    means = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    variances = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    diagonal = variances[:, None].expand(3, 2)
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    densities = [
        GaussianMixture(means, covariances).log_prob(x)
        for covariances in (variances, diagonal.contiguous(), torch.diag_embed(diagonal))
    ]
    torch.testing.assert_close(densities[0], densities[1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(densities[0], densities[2], rtol=1e-12, atol=1e-12)


def test_covariances_are_rebuilt_from_their_spectrum() -> None:
    root = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    covariances = root @ root.mT + torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(GaussianMixture(torch.zeros(3, 4).double(), covariances).covariances, covariances)


@pytest.mark.parametrize("entries", [1, 2, 4, 5, 16, 17])
def test_short_rows_are_summed_and_normalised_as_torch_does(entries: int) -> None:
    x = 30 * torch.randn(7, 3, entries, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.testing.assert_close(short_sum(x), x.sum(-1))
    torch.testing.assert_close(short_softmax(x), torch.softmax(x, -1))
    torch.testing.assert_close(short_softmax(x + 1e4), torch.softmax(x + 1e4, -1))  # neither overflows nor underflows
    slopes = [
        torch.func.jacrev(lambda row, f=f: f(row[None])[0])(x[0, 0]) for f in (short_softmax, lambda y: y.softmax(-1))
    ]
    torch.testing.assert_close(*slopes)


def test_sample_moments_are_the_exact_moments() -> None:
    mixture = full_mixture()
    n = 200_000
    x = mixture.sample(n, generator=torch.Generator().manual_seed(5))
    standard_error = (mixture.covariance.diagonal() / n).sqrt()
    assert (((x.mean(0) - mixture.mean) / standard_error).abs() < 4).all()
    torch.testing.assert_close(torch.cov(x.T), mixture.covariance, rtol=0.03, atol=0.03)


def test_labels_tell_the_component() -> None:
    mixture = GaussianMixture(torch.tensor([[-50.0], [50.0]]), 1.0, torch.tensor([0.3, 0.7]))
    x, k = mixture.sample_with_labels(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal((x[:, 0] > 0).long(), k)
    assert float(k.float().mean()) == pytest.approx(0.7, abs=0.03)


def test_one_seed_gives_one_sample() -> None:
    mixture = full_mixture()
    draws = [mixture.sample(10, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draws)


def test_normal_density_agrees_with_scipy() -> None:
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = stats.norm(scale=2.0).logpdf(x.numpy()).sum((1, 2, 3))
    np.testing.assert_allclose(Normal((1, 4, 4), std=2.0).log_prob(x).numpy(), expected, rtol=1e-12)


def test_empirical_draws_atoms_with_their_weights() -> None:
    atoms = torch.arange(3.0).reshape(3, 1)
    weights = torch.tensor([0.5, 0.25, 0.25])
    draw = Empirical(atoms, weights).sample(20000, generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(draw[:, 0].long()) / 20000
    torch.testing.assert_close(frequencies, weights, rtol=0, atol=0.015)


def test_conversion_keeps_the_density() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mixture in (full_mixture(), GaussianMixture(torch.zeros(2, 2).double(), torch.ones(2).double())):
        single = mixture.to(dtype=torch.float32)
        assert repr(single) == repr(mixture)
        torch.testing.assert_close(single.log_prob(x.float()).double(), mixture.log_prob(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "diagonal", "isotropic"])
def test_posterior_equals_brute_force_conditioning(kind: str) -> None:
    """log p(x) + log N(y; Ax, r^2) - log p(x | y) is one number, log p(y), whatever x."""
    full = full_mixture(dim=3)
    covariances = {
        "full": full.covariances,
        "diagonal": full.covariances.diagonal(dim1=1, dim2=2).contiguous(),
        "isotropic": torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64),
    }[kind]
    mixture = GaussianMixture(full.means, covariances, full.weights)
    generator = torch.Generator().manual_seed(8)
    A, y = torch.randn(2, 3, generator=generator).double(), torch.randn(2, generator=generator).double()
    posterior = mixture.condition(A, y, noise_std=0.4)
    x = 2 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    log_likelihood = stats.multivariate_normal(y.numpy(), 0.16 * np.eye(2)).logpdf((x @ A.T).numpy())
    evidence = mixture.log_prob(x) + torch.from_numpy(log_likelihood) - posterior.log_prob(x)
    expected = sum(
        float(w) * stats.multivariate_normal((A @ m).numpy(), (A @ c @ A.T).numpy() + 0.16 * np.eye(2)).pdf(y.numpy())
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    torch.testing.assert_close(evidence, torch.full_like(evidence, math.log(expected)), rtol=1e-9, atol=1e-9)


def test_posterior_given_exact_coordinates_is_the_conditional_normal() -> None:
    """Almost noise-free coordinates: mean and covariance by the Schur complement."""
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    mean, S = torch.arange(4.0, dtype=torch.float64), root @ root.T + 0.1 * torch.eye(4, dtype=torch.float64)
    A, y = torch.eye(4, dtype=torch.float64)[:2], torch.tensor([1.0, -1.0], dtype=torch.float64)
    posterior = GaussianMixture(mean[None], S[None]).condition(A, y, noise_std=1e-5)
    gain = S[2:, :2] @ torch.linalg.inv(S[:2, :2])
    torch.testing.assert_close(posterior.mean[2:], mean[2:] + gain @ (y - mean[:2]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.mean[:2], y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.covariance[2:, 2:], S[2:, 2:] - gain @ S[:2, 2:], rtol=1e-6, atol=1e-6)


def test_posterior_forgets_components_that_cannot_explain_the_measurement() -> None:
    far = GaussianMixture(torch.tensor([[-50.0, 0.0], [50.0, 0.0]]), 0.01)
    posterior = far.condition(torch.tensor([[1.0, 0.0]]), torch.tensor([50.0]), noise_std=0.1)
    torch.testing.assert_close(posterior.weights, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-30)


@pytest.mark.bad_input
class TestBadInput:
    means = torch.zeros(2, 3)

    def test_measurements(self) -> None:
        mixture, y = GaussianMixture(self.means, 1.0), torch.zeros(1)
        with pytest.raises(ValueError, match=r"A must have shape \[batch, 3\]"):
            mixture.condition(torch.zeros(1, 2), y, 0.1)
        with pytest.raises(ValueError, match=r"y must have shape"):
            mixture.condition(torch.zeros(1, 3), torch.zeros(2), 0.1)
        with pytest.raises(ValueError, match="noise_std must be positive"):
            mixture.condition(torch.zeros(1, 3), y, 0.0)
        with pytest.raises(TypeError, match="dtype"):
            mixture.condition(torch.zeros(1, 3), y.double(), 0.1)

    @pytest.mark.parametrize(
        ("covariances", "error", "message"),
        [
            (torch.ones(3), ValueError, r"covariances must be a number or of shape \[2\]"),
            (-1.0, ValueError, "covariances must be positive"),
            (torch.tensor([1.0, 0.0]), ValueError, "positive definite"),
            (torch.randn(2, 3, 3), ValueError, "symmetric"),
            (torch.ones(2, dtype=torch.float64), TypeError, "dtype and device of the means"),
        ],
    )
    def test_covariances(self, covariances, error, message) -> None:
        with pytest.raises(error, match=message):
            GaussianMixture(self.means, covariances)

    def test_weights(self) -> None:
        with pytest.raises(ValueError, match="sum to 1"):
            GaussianMixture(self.means, 1.0, torch.ones(2))
        with pytest.raises(ValueError, match=r"weights must have shape \[2\]"):
            GaussianMixture(self.means, 1.0, torch.ones(3) / 3)

    def test_means(self) -> None:
        with pytest.raises(ValueError, match="means"):
            GaussianMixture(torch.zeros(3), 1.0)
        with pytest.raises(ValueError, match="NaN"):
            GaussianMixture(torch.full((1, 2), math.nan), 1.0)

    def test_states(self) -> None:
        mixture = GaussianMixture(self.means, 1.0)
        with pytest.raises(ValueError, match=r"x must have shape \[batch, 3\]"):
            mixture.log_prob(torch.zeros(4, 2))
        with pytest.raises(TypeError, match="dtype"):
            mixture.log_prob(torch.zeros(4, 3, dtype=torch.float64))
        with pytest.raises(ValueError, match="n must be positive"):
            mixture.sample(0)

    def test_normal_and_empirical(self) -> None:
        with pytest.raises(ValueError, match="std must be positive"):
            Normal(2, std=0.0)
        with pytest.raises(ValueError, match="event_shape"):
            Normal((2, 0))
        with pytest.raises(ValueError, match="event shape"):
            Normal(2).log_prob(torch.zeros(1, 3))
        with pytest.raises(ValueError, match="atoms is empty"):
            Empirical(torch.zeros(0, 2))
