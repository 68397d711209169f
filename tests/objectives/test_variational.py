"""The bound is the entropy plus named gaps, does not see the schedule, and is what it says term by term."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from flowlib import objectives, paths
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField

PATHS = {name: paths.by_name(name) for name in ("linear", "cosine", "vp", "ve")} | {
    "mean_reverting": paths.mean_reverting(center=0.4)
}
VARIANCES = torch.tensor([0.3, 1.7], dtype=torch.float64)


def gaussian(path: paths.GaussianPath) -> MixtureField:
    return MixtureField(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), VARIANCES[None]), path)


def mixture(path: paths.GaussianPath) -> MixtureField:
    means = torch.tensor([[-1.5], [1.0]], dtype=torch.float64)
    return MixtureField(GaussianMixture(means, 0.1, torch.tensor([0.4, 0.6]).double()), path)


def entropy(field: MixtureField) -> float:
    if field.distribution.components == 1:
        return float(0.5 * torch.log(2 * math.pi * math.e * field.distribution.covariance.diagonal()).sum())
    line = torch.linspace(-8, 8, 16_001, dtype=torch.float64)[:, None]
    log_p = field.distribution.log_prob(line)
    return float(-torch.trapezoid(log_p.exp() * log_p, line[:, 0]))


def gaps(path: paths.GaussianPath, times: torch.Tensor, *, continuous: bool) -> float:
    """E[bound] - entropy for the exact Gaussian field, in closed form: marginal, step and decoder divergences.

    The model's latents: N(0, s^2) at the start, then normals with the posterior's variance, then the decoder. The exact
    reverse kernels are normals with the same means, so each gap is a divergence of two normals of one mean.
    """

    def kl(exact: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
        return 0.5 * (exact / model - 1 - torch.log(exact / model))

    alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
    total = kl(alpha[0] ** 2 * VARIANCES + sigma[0] ** 2, torch.tensor(path.prior_std**2)).sum()
    given = [VARIANCES * s**2 / (a**2 * VARIANCES + s**2) for a, s in zip(alpha, sigma, strict=True)]  # Var[x1 | x_t]
    if not continuous:
        for i, (t, u) in enumerate(itertools.pairwise(times)):
            _, b, variance = path.posterior(t, u)
            total = total + kl(variance + b**2 * given[i], variance).sum()
    return float(total + kl(given[-1], (sigma[-1] / alpha[-1]) ** 2).sum())


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve"])
@pytest.mark.parametrize("steps", [3, 30])
def test_discrete_bound_of_the_exact_gaussian_is_entropy_plus_gaps(name: str, steps: int) -> None:
    n, path = 40_000, PATHS[name]
    field, generator = gaussian(path), torch.Generator().manual_seed(0)
    x1 = field.distribution.sample(n, generator=generator)
    times = torch.linspace(0.03, 0.97, steps + 1, dtype=torch.float64)
    total = objectives.discrete_bound(field, x1, times, generator=generator).total
    expected = entropy(field) + gaps(path, times, continuous=False)
    assert abs(float(total.mean()) - expected) < 4 * float(total.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_continuous_bound_of_the_exact_gaussian_has_end_gaps_only(name: str) -> None:
    n, path = 40_000, PATHS[name]
    field, generator = gaussian(path), torch.Generator().manual_seed(1)
    x1 = field.distribution.sample(n, generator=generator)
    total = objectives.continuous_bound(field, x1, low=0.02, high=0.99, draws=8, generator=generator).total
    ends = torch.tensor([0.02, 0.99], dtype=torch.float64)
    expected = entropy(field) + gaps(path, ends, continuous=True)
    assert abs(float(total.mean()) - expected) < 4 * float(total.std()) / math.sqrt(n)


def test_mmse_integral_gives_the_entropy_gap_by_quadrature() -> None:
    """The same theorem with no sampling: I-MMSE on a fine grid of log signal-to-noise ratios."""
    path, low, high = paths.cosine(), 0.02, 0.999
    ends = torch.tensor([low, high], dtype=torch.float64)
    start, stop = path.schedule.log_snr(ends)
    snr = torch.linspace(float(start), float(stop), 20_001, dtype=torch.float64).exp()[:, None]
    diffusion = 0.5 * torch.trapezoid((snr * VARIANCES / (snr * VARIANCES + 1)).sum(1), snr[:, 0].log())
    alpha, sigma = path.schedule.alpha(ends), path.schedule.sigma(ends)
    prior = 0.5 * (alpha[0] ** 2 * VARIANCES + sigma[0] ** 2 - 1 - 2 * sigma[0].log()).sum()
    std = sigma[1] / alpha[1]
    left = VARIANCES * std**2 / (VARIANCES + std**2)
    reconstruction = 0.5 * (torch.log(2 * math.pi * std**2) + left / std**2).sum()
    expected = entropy(gaussian(path)) + gaps(path, ends, continuous=True)
    assert float(diffusion + prior + reconstruction) == pytest.approx(expected, abs=1e-6)


def test_bound_of_an_exact_mixture_tends_to_the_entropy() -> None:
    """The gap of the ancestral chain closes like 1/T; the bound never falls below the entropy."""
    n, path = 20_000, paths.cosine()
    field, generator = mixture(path), torch.Generator().manual_seed(2)
    x1 = field.distribution.sample(n, generator=generator)
    log_snr = torch.tensor([-12.0, 12.0], dtype=torch.float64)
    low, high = path.schedule.time_of_log_snr(log_snr).tolist()
    measured = []
    for steps in (25, 100, 400):
        grid = path.schedule.time_of_log_snr(torch.linspace(-12, 12, steps + 1, dtype=torch.float64))
        total = objectives.discrete_bound(field, x1, grid, generator=generator).total
        measured.append(float(total.mean()) - entropy(field))
        error = float(total.std()) / math.sqrt(n)
        assert measured[-1] > -4 * error
    assert measured[0] > measured[1]
    assert measured[1] / measured[2] == pytest.approx(4, rel=0.3)  # four times the steps
    total = objectives.continuous_bound(field, x1, low=low, high=high, draws=16, generator=generator).total
    assert abs(float(total.mean()) - entropy(field)) < 4 * float(total.std()) / math.sqrt(n) + 1e-3


@pytest.mark.parametrize("name", sorted(PATHS))
def test_diffusion_term_is_the_sum_of_divergences_of_the_steps(name: str) -> None:
    """The library's weights against torch's KL of the two posteriors, on the same draws."""
    path = PATHS[name]
    field = FunctionField(lambda x, t: torch.tanh(x) * (1 + t), path, predicts="data")
    x1 = torch.randn(5, 3, dtype=torch.float64)
    times = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    bound = objectives.discrete_bound(field, x1, times, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    expected = torch.zeros(5, dtype=torch.float64)
    draw = lambda: torch.randn(x1.shape, generator=generator, dtype=x1.dtype)
    for t, u in itertools.pairwise(times):
        xt = path.interpolate(draw(), x1, t)
        a, b, variance = path.posterior(t, u)
        truth, model = (Normal(a * xt + b * x, variance.sqrt()) for x in (x1, field.data(xt, t)))
        expected += kl_divergence(truth, model).sum(1)
    torch.testing.assert_close(bound.diffusion, expected, rtol=1e-10, atol=1e-12)

    alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
    center = torch.full_like(x1, float(path.center))
    noisy = Normal(alpha[0] * x1 + (1 - alpha[0]) * center, sigma[0])
    torch.testing.assert_close(bound.prior, kl_divergence(noisy, Normal(center, path.prior_std)).sum(1))
    last = path.interpolate(draw(), x1, times[-1])
    decoder = Normal(field.data(last, times[-1]), sigma[-1] / alpha[-1])
    torch.testing.assert_close(bound.reconstruction, -decoder.log_prob(x1).sum(1))
    torch.testing.assert_close(bound.total, bound.prior + bound.diffusion + bound.reconstruction)


def test_discrete_bound_tends_to_the_continuous_one_at_first_order() -> None:
    """A prediction that does not look at the state makes the diffusion term a plain Riemann sum."""
    path = paths.cosine()
    field = FunctionField(lambda x, t: torch.ones_like(x) * torch.cos(3 * t), path, predicts="data")
    x1 = torch.zeros(1, 1, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 100_001, dtype=torch.float64)
    snr = path.schedule.log_snr(t).exp()
    exact = 0.5 * torch.trapezoid(torch.cos(3 * t) ** 2, snr)
    errors = [
        float(objectives.discrete_bound(field, x1, torch.linspace(0.1, 0.9, n + 1).double()).diffusion - exact)
        for n in (50, 100, 200)
    ]
    for first, second in itertools.pairwise(errors):
        assert math.log2(abs(first / second)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["cosine", "vp", "ve"])
def test_continuous_bound_does_not_see_the_schedule(name: str) -> None:
    """Equal signal-to-noise ratios at the ends and equal draws: equal to rounding, sample by sample."""
    bounds = []
    for path in (paths.linear(), PATHS[name]):
        low, high = path.schedule.time_of_log_snr(torch.tensor([-6.0, 6.0], dtype=torch.float64)).tolist()
        bounds.append(
            objectives.continuous_bound(
                mixture(path), torch.linspace(-2, 2, 9).double()[:, None], low=low, high=high, draws=5,
                generator=torch.Generator().manual_seed(4),
            )
        )  # fmt: skip
    torch.testing.assert_close(bounds[0].diffusion, bounds[1].diffusion, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bounds[0].reconstruction, bounds[1].reconstruction, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predicts", paths.PREDICTIONS)
def test_bound_is_the_same_through_every_prediction(predicts: paths.Prediction) -> None:
    path = paths.cosine()
    exact = gaussian(path)
    field = FunctionField(getattr(exact, predicts), path, predicts=predicts)
    x1 = torch.randn(6, 2, dtype=torch.float64)
    options = {"low": 0.05, "high": 0.95, "draws": 3}
    mine = objectives.continuous_bound(field, x1, **options, generator=torch.Generator().manual_seed(5))
    theirs = objectives.continuous_bound(exact, x1, **options, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(mine.total, theirs.total, rtol=1e-8, atol=1e-8)


def test_likelihood_weighted_score_matching_is_the_rate_of_the_bound() -> None:
    """(d/2) times the loss with weight g^2 is d(bound)/dt; the simple loss lacks the factor d(log-SNR)/dt."""
    path = paths.cosine()
    field = FunctionField(lambda x, t: torch.tanh(x), path, predicts="noise")
    x0, x1 = torch.randn(2, 50, 3, dtype=torch.float64)
    t = torch.tensor(0.37, dtype=torch.float64)
    clock = t.clone().requires_grad_()
    (rate,) = torch.autograd.grad(path.schedule.log_snr(clock).exp(), clock)
    error = field.data(path.interpolate(x0, x1, t), t) - x1
    expected = rate / 2 * error.square().sum(1).mean()
    loss = objectives.denoising_score_matching(field, weight="likelihood")(x0, x1, t=t).total
    torch.testing.assert_close(1.5 * loss, expected)
    (log_rate,) = torch.autograd.grad(path.schedule.log_snr(clock), clock)
    simple = objectives.denoising_score_matching(field)(x0, x1, t=t).total
    torch.testing.assert_close(1.5 * log_rate * simple, expected)


class TestGreyLevels:
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)

    @pytest.mark.parametrize(("mean", "std"), [(0.0, 0.1), (0.93, 0.5), (-1.7, 0.05), (40.0, 0.02), (0.1, 1e-4)])
    def test_probabilities_sum_to_one_and_stay_finite(self, mean: float, std: float) -> None:
        decode = objectives.grey_level_decoder(1 / 8)
        log_p = decode(self.levels[:, None], torch.full((17, 1), mean).double(), torch.tensor(std).double())
        assert torch.isfinite(log_p).all()
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)

    def test_probabilities_are_differences_of_the_normal_distribution(self) -> None:
        log_p = objectives.grey_level_decoder(1 / 8)(
            self.levels[:, None], torch.full((17, 1), 0.2).double(), torch.tensor(0.4).double()
        )
        edges = torch.cat([torch.tensor([-math.inf]), self.levels[1:] - 1 / 16, torch.tensor([math.inf])])
        expected = stats.norm(0.2, 0.4).cdf(edges.numpy())
        torch.testing.assert_close(log_p.exp(), torch.from_numpy(expected[1:] - expected[:-1]))

    def test_fine_levels_are_the_density_times_the_bin(self) -> None:
        x1, mean, std = torch.tensor([[0.25]]).double(), torch.tensor([[0.1]]).double(), torch.tensor(0.3).double()
        fine = objectives.grey_level_decoder(1e-4)(x1, mean, std) - math.log(1e-4)
        torch.testing.assert_close(fine, objectives.gaussian_decoder(x1, mean, std), rtol=0, atol=1e-6)


def test_conditions_reach_the_field_and_no_gradient_is_kept() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    field = FunctionField(lambda x, t, y: scale * y * torch.ones_like(x), paths.linear(), predicts="data")
    x1 = torch.ones(3, 1)
    times = torch.tensor([0.0, 0.5])
    for bound in (
        objectives.discrete_bound(field, x1, times, y=2.0),
        objectives.continuous_bound(field, x1, low=0.1, high=0.5, y=2.0),
    ):
        assert not bound.total.requires_grad
        assert torch.equal(bound.diffusion, torch.zeros(3))
    # no signal at t = 0: nothing is paid there
    assert torch.equal(objectives.discrete_bound(field, x1, times, y=0.0).prior, torch.zeros(3))
    assert objectives.discrete_bound(field, x1, times, y=0.0).diffusion.tolist() == pytest.approx([0.5] * 3)


@pytest.mark.bad_input
class TestBadInput:
    field = mixture(paths.linear())
    x1 = torch.zeros(3, 1, dtype=torch.float64)

    def test_discrete(self) -> None:
        with pytest.raises(ValueError, match="strictly increasing"):
            objectives.discrete_bound(self.field, self.x1, torch.tensor([0.5, 0.2]))
        with pytest.raises(ValueError, match="sigma must be positive"):
            objectives.discrete_bound(self.field, self.x1, torch.tensor([0.5, 1.0]))

    def test_continuous(self) -> None:
        with pytest.raises(ValueError, match="need 0 <= low < high <= 1"):
            objectives.continuous_bound(self.field, self.x1, low=0.5, high=0.5)
        with pytest.raises(ValueError, match="alpha must be positive at low"):
            objectives.continuous_bound(self.field, self.x1, low=0.0, high=0.5)
        with pytest.raises(ValueError, match="sigma must be positive"):
            objectives.continuous_bound(self.field, self.x1, low=0.1, high=1.0)
        with pytest.raises(ValueError, match="draws must be positive"):
            objectives.continuous_bound(self.field, self.x1, low=0.1, high=0.5, draws=0)
        with pytest.raises(ValueError, match="bin_width must be positive"):
            objectives.grey_level_decoder(0.0)

    def test_decoders(self) -> None:
        with pytest.raises(ValueError, match="low must lie below high"):
            objectives.grey_level_decoder(0.5, low=1.0, high=-1.0)
        std = torch.tensor(1.0, dtype=torch.float64)
        for decoder in (objectives.gaussian_decoder, objectives.grey_level_decoder(0.5)):
            with pytest.raises(ValueError, match="x1 and mean must have the same shape"):
                decoder(self.x1, self.x1[:1], std)
            with pytest.raises(TypeError, match="x1 and mean must have the same dtype"):
                decoder(self.x1, self.x1.float(), std)
