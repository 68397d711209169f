"""The exact field of a mixture against automatic differentiation, brute-force conditioning and the law of p_t."""

import pytest
import torch
from torch import Tensor

from flowlib import paths
from flowlib.distributions import Empirical, GaussianMixture
from flowlib.fields import FunctionField, MixtureField, NetworkField

ALL = sorted(paths.SCHEDULES)
KINDS = ("full", "diagonal", "isotropic")


def mixture(kind: str = "full", dim: int = 2) -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    means = 1.5 * torch.randn(3, dim, generator=generator, dtype=torch.float64)
    root = torch.randn(3, dim, dim, generator=generator, dtype=torch.float64)
    covariances = {
        "full": root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64),
        "diagonal": root.square().sum(1) + 0.2,
        "isotropic": torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64),
    }[kind]
    return GaussianMixture(means, covariances, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))


def states(n: int = 30, dim: int = 2) -> Tensor:
    return 2 * torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_mixture_score_is_the_gradient_of_its_log_density(kind: str, name: str, t: float) -> None:
    field = MixtureField(mixture(kind), paths.by_name(name))
    x = states().requires_grad_()
    (gradient,) = torch.autograd.grad(field.log_prob(x, t).sum(), x)
    torch.testing.assert_close(field.score(x, t), gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_mixture_predictions_agree_with_every_conversion_that_exists(kind: str, name: str, t: float) -> None:
    path = paths.by_name(name)
    field = MixtureField(mixture(kind), path)
    x = states()
    exact = {p: getattr(field, p)(x, t) for p in paths.PREDICTIONS}
    compared = 0
    for source in paths.PREDICTIONS:
        for target in paths.PREDICTIONS:
            a, b = path.coefficients(torch.tensor(t, dtype=torch.float64), source, target)
            if torch.isfinite(a + b):
                # rounding grows with the coefficients, at most 1e6 here
                converted = path.convert(exact[source], x, t, source, target)
                tolerance = 1e-13 * (1 + 10 * float(a.abs() + b.abs()))
                assert float((converted - exact[target]).abs().max()) < tolerance, (source, target)
                compared += 1
    assert compared >= 11


@pytest.mark.parametrize("name", ALL)
def test_mixture_density_satisfies_the_continuity_equation(name: str) -> None:
    """d/dt log p + v . grad log p + div v = 0, all by automatic differentiation."""
    field = MixtureField(mixture(), paths.by_name(name))
    for t in (0.2, 0.6, 0.9):
        x = states().requires_grad_()
        time = torch.full((x.shape[0],), t, dtype=torch.float64, requires_grad=True)
        log_p = torch.logsumexp(field._components(x, time)[0], 1)
        d_t, score = torch.autograd.grad(log_p.sum(), (time, x), retain_graph=True)
        v = field.velocity(x, time)
        divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        residual = d_t + (v * score).sum(1) + divergence
        assert float(residual.abs().max()) < 1e-9 * (1 + float(d_t.abs().max()))


def test_velocity_is_the_conditional_mean_of_the_target() -> None:
    """Brute force: average dx_t/dt over pairs whose x_t falls into a small box."""
    distribution, path, t = mixture("isotropic"), paths.linear(), 0.6
    generator = torch.Generator().manual_seed(2)
    x1 = distribution.sample(2_000_000, generator=generator)
    x0 = torch.randn(x1.shape, generator=generator, dtype=torch.float64)
    xt, target = path.interpolate(x0, x1, t), path.target("velocity", x0, x1, t)
    centre = distribution.mean * t
    inside = ((xt - centre).abs() < 0.05).all(1)
    assert int(inside.sum()) > 500
    field = MixtureField(distribution, path)
    expected = field.velocity(xt[inside], t)
    difference = target[inside] - expected
    standard_error = difference.std(0) / inside.sum().sqrt()
    assert (difference.mean(0).abs() < 4 * standard_error).all()


def test_posterior_of_one_gaussian_is_gaussian_conditioning() -> None:
    """E[x1 | x_t] = mu + a S (a^2 S + s^2)^-1 (x - a mu)."""
    single = GaussianMixture(
        torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([[[2.0, 0.6], [0.6, 0.5]]]).double()
    )
    x, t = states(), torch.tensor(0.35, dtype=torch.float64)
    for name in ALL:
        path = paths.by_name(name)
        alpha, sigma = path.schedule.alpha(t), path.schedule.sigma(t)
        covariance, mu = single.covariances[0], single.means[0]
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2).double())
        expected = mu + (x - alpha * mu) @ gain.T
        torch.testing.assert_close(MixtureField(single, path).data(x, t), expected, rtol=1e-11, atol=1e-11)


def test_field_of_a_data_set_is_the_limit_of_narrow_gaussians() -> None:
    atoms = mixture().means
    narrow = GaussianMixture(atoms, 1e-12)
    x = states()
    for prediction in paths.PREDICTIONS:
        torch.testing.assert_close(
            getattr(MixtureField(Empirical(atoms), paths.linear()), prediction)(x, 0.5),
            getattr(MixtureField(narrow, paths.linear()), prediction)(x, 0.5),
            rtol=1e-8,
            atol=1e-8,
        )


def test_data_prediction_of_a_data_set_is_a_softmax_over_atoms() -> None:
    atoms = torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t = 0.4
    squares = (x.flatten(1)[:, None] - t * atoms.flatten(1)).square().sum(2)
    expected = (torch.softmax(-squares / (2 * (1 - t) ** 2), 1) @ atoms.flatten(1)).reshape(x.shape)
    torch.testing.assert_close(MixtureField(Empirical(atoms), paths.linear()).data(x, t), expected)


@pytest.mark.parametrize("prediction", paths.PREDICTIONS)
def test_large_data_sets_use_matrix_products_with_the_same_result(prediction: str, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(5)
    atoms = torch.randn(50, 3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    field = MixtureField(Empirical(atoms), paths.vp())
    direct, log_direct = getattr(field, prediction)(x, t), field.log_prob(x, t)
    monkeypatch.setattr("flowlib.fields.mixture._DENSE_ENTRIES", 0)
    torch.testing.assert_close(getattr(field, prediction)(x, t), direct, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(field.log_prob(x, t), log_direct, rtol=1e-10, atol=1e-10)


def test_per_sample_times_equal_separate_calls() -> None:
    field = MixtureField(mixture(), paths.cosine())
    x = states(4)
    t = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    together = field.velocity(x, t)
    for i in range(4):
        torch.testing.assert_close(together[i], field.velocity(x[i : i + 1], t[i])[0])


def test_center_moves_the_field_with_the_data() -> None:
    mu = torch.tensor([3.0, -1.0], dtype=torch.float64)
    plain = mixture()
    moved = GaussianMixture(plain.means + mu, plain.covariances, plain.weights)
    x = states()
    a = MixtureField(plain, paths.mean_reverting(0.0, 0.5))
    b = MixtureField(moved, paths.mean_reverting(mu, 0.5))
    for prediction in ("velocity", "score", "noise"):
        torch.testing.assert_close(getattr(a, prediction)(x, 0.4), getattr(b, prediction)(x + mu, 0.4))
    torch.testing.assert_close(a.data(x, 0.4) + mu, b.data(x + mu, 0.4))
    torch.testing.assert_close(a.log_prob(x, 0.4), b.log_prob(x + mu, 0.4))


def test_exact_samples_follow_the_marginal() -> None:
    field = MixtureField(mixture(), paths.linear())
    x = field.sample(100_000, 0.7, generator=torch.Generator().manual_seed(6))
    target = field.distribution
    torch.testing.assert_close(x.mean(0), 0.7 * target.mean, rtol=0, atol=0.02)
    expected = 0.49 * target.covariance + 0.09 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(x.T), expected, rtol=0.03, atol=0.03)


def test_responsibilities_are_probabilities_and_uniform_at_pure_noise() -> None:
    field = MixtureField(mixture(), paths.linear())
    torch.testing.assert_close(field.responsibilities(states(), 0.5).sum(1), torch.ones(30).double())
    torch.testing.assert_close(field.responsibilities(states(), 0.0), field.distribution.weights.expand(30, 3))


@pytest.mark.parametrize("predicts", paths.PREDICTIONS)
def test_a_field_may_predict_any_of_the_four(predicts: str) -> None:
    exact = MixtureField(mixture(), paths.linear())
    field = FunctionField(exact.function(predicts), paths.linear(), predicts=predicts)
    x = states()
    for kind in paths.PREDICTIONS:
        torch.testing.assert_close(getattr(field, kind)(x, 0.3), getattr(exact, kind)(x, 0.3))
        t = torch.tensor(0.3, dtype=torch.float64)
        torch.testing.assert_close(field.function(kind)(x, t), getattr(exact, kind)(x, 0.3))


class Recorder(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen = (tuple(t.shape), y)
        return x


def test_network_field_expands_time_and_passes_conditions_untouched() -> None:
    net, labels = Recorder(), torch.arange(3)
    field = NetworkField(net, paths.linear())
    field.velocity(torch.zeros(3, 2), 0.5, y=labels)
    assert net.seen[0] == (3,)
    assert net.seen[1] is labels
    assert net in list(field.modules())


@pytest.mark.bad_input
class TestBadInput:
    field = MixtureField(mixture(), paths.linear())

    def test_wrong_event_shape(self) -> None:
        with pytest.raises(ValueError, match=r"x must have event shape \[2\], got \[3\]"):
            self.field.velocity(torch.zeros(4, 3, dtype=torch.float64), 0.5)

    def test_mixed_dtypes(self) -> None:
        with pytest.raises(TypeError, match="same dtype"):
            self.field.velocity(torch.zeros(4, 2), 0.5)

    def test_times(self) -> None:
        x = states(3)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            self.field.velocity(x, 1.1)
        with pytest.raises(ValueError, match="one time a sample"):
            self.field.score(x, torch.zeros(2, dtype=torch.float64))

    def test_nan_states(self) -> None:
        with pytest.raises(ValueError, match="NaN"):
            self.field.data(torch.full((1, 2), torch.nan, dtype=torch.float64), 0.5)

    def test_atoms_have_no_density_at_the_end(self) -> None:
        field = MixtureField(Empirical(states(5)), paths.linear())
        for prediction in paths.PREDICTIONS:
            with pytest.raises(ValueError, match="finite data set has no limit where sigma = 0"):
                getattr(field, prediction)(states(2), 1.0)

    def test_score_of_a_velocity_network_at_the_end(self) -> None:
        field = NetworkField(Recorder(), paths.linear())
        with pytest.raises(ValueError, match=r"score cannot be computed from the velocity.*t = 1"):
            field.score(torch.zeros(2, 2), 1.0)

    def test_unknown_prediction_and_distribution(self) -> None:
        with pytest.raises(ValueError, match="predicts must be one of"):
            NetworkField(Recorder(), paths.linear(), predicts="speed")
        with pytest.raises(ValueError, match="kind must be one of"):
            self.field.function("speed")
        with pytest.raises(TypeError, match="GaussianMixture or an Empirical"):
            MixtureField(torch.zeros(3, 2), paths.linear())

    def test_batched_center(self) -> None:
        path = paths.mean_reverting(torch.zeros(4, 2, dtype=torch.float64))
        with pytest.raises(ValueError, match="center must be a number or of shape"):
            MixtureField(mixture(), path)
