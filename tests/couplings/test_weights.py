"""Gibbs weights: an entropic plan between its own marginals, with both tilts measured."""

import math

import pytest
import torch

from flowlib import couplings, data, nets, objectives, paths
from flowlib.fields import FunctionField, NetworkField


@pytest.fixture
def pools() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    return x0, data.toys.eight_gaussians(2.0, 0.2, dtype=torch.float64).sample(45, generator=generator)


def joint(x0: torch.Tensor, x1: torch.Tensor, epsilon: float) -> torch.Tensor:
    weight = torch.exp(-torch.cdist(x0, x1) / epsilon)
    return weight / weight.sum()


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_the_weighted_law_is_the_entropic_plan_between_its_own_marginals(pools, epsilon: float) -> None:
    x0, x1 = pools
    gamma = joint(x0, x1, epsilon)
    plan = couplings.sinkhorn_plan(
        torch.cdist(x0, x1), epsilon, a=gamma.sum(1), b=gamma.sum(0), iterations=50_000, tolerance=1e-13
    )
    assert float((plan - gamma).abs().max()) < 1e-10


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_tilt_is_the_ratio_of_marginals(pools, power: float) -> None:
    x0, x1 = pools
    weight = torch.exp(-torch.cdist(x0, x1).pow(power) / 1.5)
    gamma = weight / weight.sum()
    measured = couplings.tilt(x0, x1, 1.5, power=power)
    torch.testing.assert_close(measured.source, gamma.sum(1) * 60)
    torch.testing.assert_close(measured.data, gamma.sum(0) * 45)
    assert measured.ess == pytest.approx(float(weight.sum() ** 2 / weight.square().sum() / weight.numel()))
    assert measured.log_normalizer == pytest.approx(math.log(float(weight.mean())))


def test_blocks_do_not_change_the_tilt(pools, monkeypatch) -> None:
    whole = couplings.tilt(*pools, 0.7)
    monkeypatch.setattr("flowlib.couplings.weights._CHUNK_ENTRIES", 100)
    blocked = couplings.tilt(*pools, 0.7)
    torch.testing.assert_close(whole.source, blocked.source)
    torch.testing.assert_close(whole.data, blocked.data)
    assert whole.ess == pytest.approx(blocked.ess, rel=1e-12)


def test_on_a_circle_the_weights_are_the_entropic_plan_of_the_original_marginals() -> None:
    """Both laws uniform on a regular polygon: the cost is invariant under rotation, so nothing is tilted."""
    angle = torch.arange(40, dtype=torch.float64) * (2 * math.pi / 40)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    measured = couplings.tilt(x, x, 0.3)
    assert measured.source_variance < 1e-24
    assert measured.data_variance < 1e-24
    plan = couplings.sinkhorn_plan(torch.cdist(x, x), 0.3, iterations=10_000, tolerance=1e-13)
    assert float((plan - joint(x, x, 0.3)).abs().max()) < 1e-10


def test_gaussian_moments_agree_with_the_closed_form() -> None:
    """N(0, 1) to N(m, s^2) with the cost (x - y)^2 / 2 and epsilon = 0.8, from a million weighted pairs."""
    generator = torch.Generator().manual_seed(1)
    n, m, s, epsilon = 1_000_000, 1.5, 0.5, 0.8
    x0 = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x1 = m + s * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    pair = couplings.gibbs(2 * epsilon, pool=(x0[:2000], x1[:2000]), power=2)
    w = pair(x0, x1).weight
    w = w / w.sum()
    x, y = x0[:, 0], x1[:, 0]
    ex, ey = (w * x).sum(), (w * y).sum()
    delta = 1 + epsilon + s**2
    expected = [
        m / delta,
        m * (1 + epsilon) / delta,
        (epsilon + s**2) / delta,
        s**2 * (1 + epsilon) / delta,
        s**2 / delta,
    ]
    got = [ex, ey, (w * (x - ex) ** 2).sum(), (w * (y - ey) ** 2).sum(), (w * (x - ex) * (y - ey)).sum()]
    for value, closed_form in zip(got, expected, strict=True):
        assert float(value) == pytest.approx(closed_form, rel=0.02)


def test_cost_falls_with_sharpness_at_the_rate_of_its_variance(pools) -> None:
    cost = torch.cdist(*pools).flatten()
    beta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    gamma = torch.softmax(-beta * cost, 0)
    mean = (gamma * cost).sum()
    (slope,) = torch.autograd.grad(mean, beta)
    variance = (gamma * (cost - mean) ** 2).sum()
    assert float((slope + variance).detach()) == pytest.approx(0, abs=1e-12)


def test_large_epsilon_is_plain_flow_matching() -> None:
    torch.manual_seed(0)
    field = NetworkField(nets.MLP(2, width=16), paths.linear())
    generator = torch.Generator().manual_seed(2)
    x0, x1 = torch.randn(64, 2, generator=generator), torch.randn(64, 2, generator=generator) + 1
    t = torch.rand(64, generator=generator)

    def gradient(coupling) -> torch.Tensor:
        loss = objectives.flow_matching(field, coupling=coupling)(x0, x1, t=t).total
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(field.parameters()))])

    plain, weighted = gradient(couplings.independent), gradient(couplings.gibbs(1e6, pool=(x0, x1)))
    assert float((plain - weighted).norm() / plain.norm()) < 2e-6


def test_small_epsilon_keeps_only_the_nearest_pair(pools) -> None:
    x0, x1 = pools[0][:45], pools[1]
    w = couplings.gibbs(1e-3, pool=(x0, x1), least_ess=1e-9)(x0, x1).weight
    nearest = (x0 - x1).norm(dim=1).argmin()
    assert float(w[nearest] / w.sum()) > 1 - 1e-6


def test_small_epsilon_collapses_on_the_product_of_densities() -> None:
    """Two equal N(0, 1): both tilted marginals tend to N(0, 1/2), so this is not optimal transport."""
    x = torch.linspace(-6, 6, 1501, dtype=torch.float64)[:, None]
    density = torch.exp(-(x[:, 0] ** 2) / 2)
    density = density / density.sum()
    gamma = density[:, None] * density * torch.exp(-torch.cdist(x, x).square() / 1e-3)
    marginal = gamma.sum(1) / gamma.sum()
    assert float((marginal * x[:, 0] ** 2).sum()) == pytest.approx(0.5, abs=1e-3)


def test_weights_have_mean_one_over_the_pools(pools) -> None:
    x0, x1 = pools
    pair = couplings.gibbs(0.8, pool=pools)
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(45), indexing="ij")
    w = pair(x0[rows.flatten()], x1[columns.flatten()]).weight
    assert float(w.mean()) == pytest.approx(1, abs=1e-12)


def test_each_sample_is_weighed_before_the_mean_is_taken(pools) -> None:
    x0, x1 = pools[0][:45], pools[1]
    field = FunctionField(lambda x, t: torch.zeros_like(x), paths.linear())
    pair = couplings.gibbs(0.8, pool=pools)
    loss = objectives.flow_matching(field, coupling=pair)(x0, x1, t=torch.full((45,), 0.5, dtype=torch.float64)).total
    w, error = pair(x0, x1).weight, (x1 - x0).square().mean(1)
    torch.testing.assert_close(loss, (w * error).mean())
    assert abs(float(loss - w.mean() * error.mean())) > 0.1


def test_weights_stay_finite_in_high_dimension_in_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    x0, x1 = (torch.randn(200, 3072, generator=generator) for _ in range(2))
    assert float(torch.exp(-(x0 - x1).norm(dim=1) / 0.05).max()) == 0.0  # the plain weights underflow
    w = couplings.gibbs(0.05, pool=(x0, x1), least_ess=1e-6)(x0, x1).weight
    assert torch.isfinite(w).all()
    assert float(w.max()) > 0


def test_chosen_epsilon_is_the_smallest_that_keeps_both_marginals(pools) -> None:
    epsilon = couplings.choose_epsilon(*pools, max_variance=0.05)
    at, below = couplings.tilt(*pools, epsilon), couplings.tilt(*pools, epsilon / 1.01)
    assert max(at.source_variance, at.data_variance) <= 0.05
    assert max(below.source_variance, below.data_variance) > 0.05


def test_class_masses_follow_the_tilt(pools) -> None:
    x0, x1 = pools
    labels = torch.arange(45) % 3
    gamma = joint(x0, x1, 0.5).sum(0)
    masses = couplings.tilt(x0, x1, 0.5).class_mass(labels)
    expected = torch.stack([gamma[labels == k].sum() for k in range(3)]) * 3
    torch.testing.assert_close(masses, expected)


@pytest.mark.bad_input
class TestBadInput:
    def test_epsilon_far_below_the_spread_is_refused(self, pools) -> None:
        with pytest.raises(ValueError, match=r"epsilon=0\.001 is far below the spread"):
            couplings.gibbs(1e-3, pool=pools)

    def test_numbers_must_be_positive(self, pools) -> None:
        with pytest.raises(ValueError, match="epsilon"):
            couplings.tilt(*pools, 0.0)
        with pytest.raises(ValueError, match="power"):
            couplings.tilt(*pools, 1.0, power=-1)
        with pytest.raises(ValueError, match="max_variance"):
            couplings.choose_epsilon(*pools, max_variance=0)

    def test_pools_must_agree(self, pools) -> None:
        with pytest.raises(ValueError, match="event shape"):
            couplings.tilt(pools[0], pools[1][:, :1], 1.0)
        with pytest.raises(ValueError, match="equal"):
            couplings.choose_epsilon(torch.zeros(3, 2), torch.ones(3, 2))

    def test_labels_must_fit(self, pools) -> None:
        measured = couplings.tilt(*pools, 1.0)
        with pytest.raises(ValueError, match="labels"):
            measured.class_mass(torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="every class"):
            measured.class_mass(torch.full((45,), 2))
