"""Flow matching: the loss by hand, its minimiser, its constant, its weights, and conditions that follow their data."""

import itertools

import pytest
import torch
from torch import Tensor

from flowlib import couplings, objectives, paths
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField

PATHS = {"linear": paths.linear(), "cosine": paths.cosine(), "vp": paths.vp(), "ve": paths.ve(0.1, 5.0)}


def mixture() -> GaussianMixture:
    return GaussianMixture(torch.tensor([[-1.0, 0.3], [1.2, -0.5]]).double(), torch.tensor([0.3, 0.6]).double())


def batch(n: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(n, generator=generator, dtype=torch.float64)
    return x0, mixture().sample(n, generator=generator), t


@pytest.mark.parametrize("predicts", paths.PREDICTIONS)
@pytest.mark.parametrize("name", PATHS)
def test_loss_is_the_mean_squared_error_of_the_own_prediction(name: str, predicts: str) -> None:
    path, (x0, x1, t) = PATHS[name], batch()
    field = FunctionField(lambda x, t: torch.sin(x), path, predicts=predicts)
    value = objectives.flow_matching(field)(x0, x1, t=t).total
    expected = (torch.sin(path.interpolate(x0, x1, t)) - path.target(predicts, x0, x1, t)).square().mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
@pytest.mark.parametrize(("predicts", "error_in"), list(itertools.permutations(paths.PREDICTIONS, 2)))
def test_error_in_another_prediction_is_the_error_after_conversion(name: str, predicts: str, error_in: str) -> None:
    """|ds|^2 = |dx0|^2/sigma^2 = (alpha^2/sigma^4) |dx1|^2 = (alpha/(sigma D))^2 |dv|^2, sample by sample."""
    path, (x0, x1, t) = PATHS[name], batch()
    field = FunctionField(lambda x, t: torch.sin(x), path, predicts=predicts)
    value = objectives.flow_matching(field, error_in=error_in)(x0, x1, t=t).total
    xt = path.interpolate(x0, x1, t)
    converted = path.convert(torch.sin(xt), xt, t, predicts, error_in)
    expected = (converted - path.target(error_in, x0, x1, t)).square().mean()
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)


def test_weights_are_those_of_the_table() -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for path in PATHS.values():
        s = path.schedule
        alpha, sigma = s.alpha(t), s.sigma(t)
        d = s.alpha_dot(t) * sigma - alpha * s.sigma_dot(t)
        weight = lambda predicts: objectives.loss_weight(path, t, predicts, "score")  # noqa: B023
        torch.testing.assert_close(weight("noise"), 1 / sigma**2)
        torch.testing.assert_close(weight("data"), alpha**2 / sigma**4)
        torch.testing.assert_close(weight("velocity"), (alpha / (sigma * d)) ** 2)
        torch.testing.assert_close(weight("score"), torch.ones_like(t))


def test_conditional_loss_is_the_marginal_loss_plus_a_constant() -> None:
    """Differences of conditional losses equal differences of marginal ones, within Monte-Carlo error."""
    n = 400_000
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x1 = mixture().sample(n, generator=generator)
    t = torch.rand(n, generator=generator, dtype=torch.float64)
    path = paths.linear()
    exact = MixtureField(mixture(), path)
    xt = path.interpolate(x0, x1, t)
    truth, target = exact.velocity(xt, t), path.target("velocity", x0, x1, t)
    for model in (lambda x: 0.5 * x, lambda x: torch.cos(x)):
        conditional = (model(xt) - target).square().sum(1)
        marginal = (model(xt) - truth).square().sum(1)
        constant = (target - truth).square().sum(1)
        gap = conditional - marginal - constant
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / n**0.5


@pytest.mark.parametrize("predicts", paths.PREDICTIONS)
def test_the_exact_field_minimises_the_loss(predicts: str) -> None:
    path, (x0, x1, _) = paths.cosine(), batch(100_000)
    t = 0.05 + 0.9 * torch.rand(100_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = MixtureField(mixture(), path).function(predicts)
    bump = lambda x: torch.stack([torch.sin(x[:, 1]), torch.cos(x[:, 0])], 1)

    def loss(c: float) -> float:
        field = FunctionField(lambda x, t: exact(x, t) + c * bump(x), path, predicts=predicts)
        return float(objectives.flow_matching(field, error_in="noise")(x0, x1, t=t).total)

    centre = loss(0.0)
    assert centre < loss(0.1)
    assert centre < loss(-0.1)


def test_labels_follow_their_data_through_the_pairing() -> None:
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(64, 2, generator=generator)
    y = torch.arange(64)
    x1 = torch.stack([y.float(), torch.randn(64, generator=generator)], 1)  # the label is written in the data
    seen = []

    def predict(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((x, y))
        return x

    field = FunctionField(predict, paths.linear(), predicts="data")
    objectives.flow_matching(field, coupling=couplings.exact_ot)(x0, x1, t=torch.ones(64), y=y)
    (x, labels) = seen[0]
    assert torch.equal(x[:, 0].round().long(), labels)
    assert not torch.equal(labels, y)


def test_labels_are_dropped_at_the_stated_rate() -> None:
    seen = []

    def predict(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return x

    objective = objectives.flow_matching(FunctionField(predict, paths.linear()), drop_condition=0.2)
    y = torch.arange(20_000) % 10
    objective(torch.zeros(20_000, 2), torch.ones(20_000, 2), y=y, generator=torch.Generator().manual_seed(0))
    dropped = seen[0] == -1
    assert float(dropped.double().mean()) == pytest.approx(0.2, abs=0.012)
    assert torch.equal(seen[0][~dropped], y[~dropped])


def test_pair_and_time_weights_multiply() -> None:
    x0, x1, t = batch()
    field = FunctionField(lambda x, t: torch.sin(x), paths.linear())
    weights = torch.linspace(0.5, 1.5, 50, dtype=torch.float64)

    def weighted(x0, x1, *, generator=None):
        return couplings.Pairs(x0, x1, weight=weights)

    value = objectives.flow_matching(field, coupling=weighted, weight=lambda t: 1 + t)(x0, x1, t=t)
    xt = paths.linear().interpolate(x0, x1, t)
    error = (torch.sin(xt) - (x1 - x0)).square().mean(1)
    torch.testing.assert_close(value.total, (weights * (1 + t) * error).mean())
    torch.testing.assert_close(value.terms["error"], error.mean())


def test_independent_target_agrees_with_torchcfm() -> None:
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching", reason="torchcfm is a peer of make bench only")
    x0, x1, t = batch()
    _, xt, target = torchcfm.ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1, t=t)
    torch.testing.assert_close(xt, paths.linear().interpolate(x0, x1, t))
    torch.testing.assert_close(target, paths.linear().target("velocity", x0, x1, t))


@pytest.mark.bad_input
class TestBadInput:
    field = FunctionField(lambda x, t: x, paths.linear())
    x = torch.zeros(3, 2)

    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match="error_in must be one of"):
            objectives.flow_matching(self.field, error_in="speed")
        with pytest.raises(ValueError, match=r"drop_condition must lie in \[0, 1\)"):
            objectives.flow_matching(self.field, drop_condition=1.0)

    def test_batches(self) -> None:
        objective = objectives.flow_matching(self.field)
        with pytest.raises(ValueError, match="same shape"):
            objective(torch.zeros(2, 2), self.x)
        with pytest.raises(ValueError, match="x1 has NaN"):
            objective(self.x, self.x * torch.nan)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            objective(self.x, self.x, t=torch.full((3,), 2.0))

    def test_infinite_weights(self) -> None:
        noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match="score cannot be computed from the noise"):
            objectives.flow_matching(noise, error_in="score")(self.x, self.x, t=torch.ones(3))
