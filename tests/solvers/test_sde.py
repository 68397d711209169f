"""The family of SDEs: one law for every noise level, and the weak order of the methods."""

import itertools
import math

import pytest
import torch

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField


def mixture() -> GaussianMixture:
    return GaussianMixture(torch.tensor([[-1.2], [0.9]]).double(), 0.3, torch.tensor([0.4, 0.6]).double())


@pytest.mark.parametrize("method", solvers.SDE_METHODS)
@pytest.mark.parametrize("eta", [0.0, 0.7, "damped", lambda t: torch.sqrt(2 * (1 - t))])
def test_every_noise_level_has_the_same_law(method: str, eta) -> None:
    n = 20_000
    field = MixtureField(mixture(), paths.linear())
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    # a little before the end, where a constant noise level is still resolved by the steps
    times = torch.linspace(0, 0.98, 501, dtype=torch.float64)
    x = solvers.sde(field, x0, times=times, method=method, eta=eta, generator=generator, keep=False).end
    target = mixture()
    mean = 0.98 * target.mean
    second = 0.98**2 * (target.covariance[0, 0] + target.mean**2) + 0.02**2
    assert abs(float(x.mean() - mean)) < 4 * float(x.std()) / math.sqrt(n)
    assert abs(float((x**2).mean() - second)) < 4 * float((x**2).std()) / math.sqrt(n) + 0.003


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "cosine", "mean_reverting"])
def test_reverse_sde_reaches_the_data(name: str) -> None:
    n, path = 20_000, paths.ve(0.02, 10.0) if name == "ve" else paths.by_name(name)
    field = MixtureField(mixture(), path)
    generator = torch.Generator().manual_seed(1)
    low = 0.02 if name == "cosine" else 0.0
    x0 = field.sample(n, low, generator=generator)
    times = torch.linspace(low, 1, 601, dtype=torch.float64)
    x = solvers.sde(field, x0, times=times, eta="reverse", generator=generator, keep=False).end
    target = mixture()
    assert abs(float(x.mean() - target.mean)) < 4 * float(x.std()) / math.sqrt(n) + 0.01
    assert float(x.var()) == pytest.approx(float(target.covariance), rel=0.04)


def weak_error(method: str, steps: int) -> float:
    """Error of the variance for Gaussian data, exactly: the step is affine in x and in the noise."""
    path = paths.cosine()
    field = MixtureField(GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 0.3), path)
    times = torch.linspace(0.1, 0.9, steps + 1, dtype=torch.float64)
    variance = path.schedule.alpha(times[0]) ** 2 * 0.3 + path.schedule.sigma(times[0]) ** 2
    for t, u in itertools.pairwise(times):
        torch.stack([t, u])
        one = torch.ones(1, 1, dtype=torch.float64)

        rate = solvers.eta_squared(field, 1.0)
        a = [field.velocity(one, s) + rate(s) / 2 * field.score(one, s) for s in (t, u)]
        h = u - t
        if method == "euler_maruyama":
            gain, noise = 1 + h * a[0], h
        else:
            gain, noise = 1 + h / 2 * (a[0] + a[1] * (1 + h * a[0])), h * (1 + h / 2 * a[1]) ** 2
        variance = gain**2 * variance + noise
    exact = path.schedule.alpha(times[-1]) ** 2 * 0.3 + path.schedule.sigma(times[-1]) ** 2
    return abs(float(variance - exact))


@pytest.mark.parametrize(("method", "order"), [("euler_maruyama", 1), ("heun", 2)])
def test_weak_order_on_gaussian_data(method: str, order: int) -> None:
    errors = [weak_error(method, steps) for steps in (40, 80, 160)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("method", solvers.SDE_METHODS)
def test_a_step_is_the_affine_map_assumed_above(method: str) -> None:
    """One step of the solver against the formula that `weak_error` iterates, with the same noise."""
    path = paths.cosine()
    field = MixtureField(GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 0.3), path)
    t, u = torch.tensor([0.4, 0.45], dtype=torch.float64)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    out = solvers.sde(
        field, x, times=torch.stack([t, u]), method=method, eta=1.0, generator=torch.Generator().manual_seed(3)
    ).end
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    h, noise = u - t, (u - t).sqrt() * z
    drift = lambda y, s: field.velocity(y, s) + 0.5 * field.score(y, s)
    k1 = drift(x, t)
    expected = x + h * k1 + noise
    if method == "heun":
        expected = x + h / 2 * (k1 + drift(expected, u)) + noise
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_zero_noise_is_the_ode() -> None:
    field = MixtureField(mixture(), paths.linear())
    x0 = torch.randn(10, 1, dtype=torch.float64)
    a = solvers.sde(field, x0, steps=9, eta=0.0).states
    b = solvers.ode(field, x0, steps=9).states
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_evaluations_and_seeds() -> None:
    field = MixtureField(mixture(), paths.linear())
    x0 = torch.randn(10, 1, dtype=torch.float64)
    assert solvers.sde(field, x0, steps=8).nfe == 8
    assert solvers.sde(field, x0, steps=8, method="heun").nfe == 15  # the last step is an Euler step
    runs = [solvers.sde(field, x0, steps=8, generator=torch.Generator().manual_seed(2)).end for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.bad_input
class TestBadInput:
    field = MixtureField(mixture(), paths.linear())
    x = torch.zeros(3, 1, dtype=torch.float64)

    def test_options(self) -> None:
        with pytest.raises(ValueError, match="eta must not be negative"):
            solvers.sde(self.field, self.x, steps=3, eta=-1.0)
        with pytest.raises(ValueError, match="eta must be one of 'damped', 'reverse'"):
            solvers.sde(self.field, self.x, steps=3, eta="backward")
        with pytest.raises(ValueError, match="singular at t = 0"):
            solvers.sde(self.field, self.x, steps=3, eta="reverse")
        with pytest.raises(ValueError, match="times must increase"):
            solvers.sde(self.field, self.x, times=torch.tensor([0.9, 0.1]).double())
        with pytest.raises(ValueError, match="method must be one of 'euler_maruyama'"):
            solvers.sde(self.field, self.x, steps=3, method="milstein")
        with pytest.raises(ValueError, match="finite number"):
            solvers.sde(self.field, self.x, steps=3, eta=lambda t: 1 / t)

    def test_needs_a_field_with_a_score(self) -> None:
        with pytest.raises(TypeError, match="score is needed"):
            solvers.sde(lambda x, t: x, self.x, steps=3)
        noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match="velocity cannot be computed"):
            solvers.sde(noise, self.x, steps=3)
