"""Score matching: one gradient for four losses, in closed form where expectations are elementary."""

import math

import pytest
import torch
from torch import Tensor

from flowlib import couplings, objectives, paths
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField


def data_and_model(n: int = 200_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    covariance = root @ root.T + 0.5 * torch.eye(3, dtype=torch.float64)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    # make the sample's moments exact, so that closed forms hold without sampling error
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T @ torch.linalg.cholesky(covariance).T
    a = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    return x, covariance, a, b


def gradient(loss: Tensor, *parameters: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_implicit_and_explicit_have_the_same_gradient_for_a_linear_model() -> None:
    x, covariance, a, b = data_and_model(2000)
    inverse = torch.linalg.inv(covariance)
    explicit = objectives.explicit(lambda x: b - x @ a.T, x, lambda x: -x @ inverse)
    implicit = objectives.implicit(lambda x: b - x @ a.T, x)
    torch.testing.assert_close(gradient(explicit, a, b), gradient(implicit, a, b), rtol=1e-9, atol=1e-9)
    constant = 0.5 * inverse.trace()
    torch.testing.assert_close(explicit - implicit, constant, rtol=1e-9, atol=1e-9)


def test_implicit_loss_of_a_nonlinear_score_is_its_formula() -> None:
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value = objectives.implicit(lambda x: torch.stack([torch.sin(x[:, 0]) * x[:, 1], x[:, 1] ** 3], 1), x)
    div = torch.cos(x[:, 0]) * x[:, 1] + 3 * x[:, 1] ** 2
    norm = (torch.sin(x[:, 0]) * x[:, 1]) ** 2 + x[:, 1] ** 6
    torch.testing.assert_close(value, (div + norm / 2).mean())


@pytest.mark.parametrize("reduce_variance", [True, False])
def test_sliced_averages_to_implicit(reduce_variance: bool) -> None:
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mix = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    score = lambda x: torch.sin(x @ mix.T)
    generator = torch.Generator().manual_seed(3)
    values = torch.stack(
        [
            objectives.sliced(score, x, projections=20, reduce_variance=reduce_variance, generator=generator).detach()
            for _ in range(200)
        ]
    )
    standard_error = float(values.std()) / math.sqrt(200)
    assert abs(float(values.mean() - objectives.implicit(score, x).detach())) < 4 * standard_error


def test_reduced_variance_reduces_variance() -> None:
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spread = []
    for reduce_variance in (True, False):
        generator = torch.Generator().manual_seed(3)
        draws = [
            objectives.sliced(lambda x: torch.sin(x.flip(1)), x, reduce_variance=reduce_variance, generator=generator)
            for _ in range(200)
        ]
        spread.append(float(torch.stack(draws).detach().std()))
    assert spread[0] < spread[1]


def test_denoising_is_explicit_for_the_smoothed_density_plus_the_stated_constant() -> None:
    n, v, sigma = 400_000, 0.7, 0.5
    x = v**0.5 * torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    score = lambda x: 0.2 - 0.9 * x
    value = float(objectives.denoising(score, x, sigma, generator=torch.Generator().manual_seed(5)))
    smooth = v + sigma**2
    explicit = 0.5 * ((0.9 - 1 / smooth) ** 2 * smooth + 0.2**2)
    constant = v / (2 * sigma**2 * smooth)
    assert value == pytest.approx(explicit + constant, rel=0.01)


@pytest.mark.parametrize("predicts", paths.PREDICTIONS)
def test_path_losses_do_not_depend_on_what_the_field_predicts(predicts: str) -> None:
    path = paths.vp()
    exact = MixtureField(GaussianMixture(torch.zeros(1, 2).double(), 0.3), path)
    generator = torch.Generator().manual_seed(6)
    x0 = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    x1 = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    field = FunctionField(exact.function(predicts), path, predicts=predicts)
    xt = path.interpolate(x0, x1, t)
    error = (exact.score(xt, t) + x0 / path.schedule.sigma(t)[:, None]).square().mean(1)
    for name, weight in {
        "variance": path.schedule.sigma(t) ** 2,
        "likelihood": path.drift_diffusion(t)[1],
        "none": torch.ones_like(t),
    }.items():
        value = objectives.denoising_score_matching(field, weight=name)(x0, x1, t=t).total
        torch.testing.assert_close(value, (weight * error).mean(), rtol=1e-8, atol=1e-10)
    own = objectives.denoising_score_matching(field, weight=lambda t: t**2)(x0, x1, t=t).total
    torch.testing.assert_close(own, (t**2 * error).mean(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("weight", ["variance", "likelihood"])
def test_pairings_and_dropped_labels_reach_the_path_losses(weight: str) -> None:
    seen = []

    def predict(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return x

    def reverse(x0: Tensor, x1: Tensor, *, generator=None, **conditions) -> couplings.Pairs:
        index = torch.arange(len(x1)).flip(0)
        return couplings.Pairs(x0, x1[index], index=index)

    field = FunctionField(predict, paths.vp(), predicts="noise")
    x, y = torch.randn(2000, 2), torch.arange(2000)
    t = torch.full((2000,), 0.5)
    objectives.denoising_score_matching(field, weight=weight, coupling=reverse)(x, x, t=t, y=y)
    assert torch.equal(seen[0], y.flip(0))
    dropping = objectives.denoising_score_matching(field, weight=weight, drop_condition=0.5)
    draws = [dropping(x, x, t=t, y=y, generator=torch.Generator().manual_seed(1)) and seen[-1] for _ in range(2)]
    assert 0.4 < float((draws[0] == -1).double().mean()) < 0.6
    assert torch.equal(*draws)


def test_the_variance_weight_is_finite_at_the_data_end() -> None:
    field = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
    value = objectives.denoising_score_matching(field)(torch.zeros(3, 2), torch.ones(3, 2), t=torch.ones(3)).total
    assert float(value) == pytest.approx(1.0)


@pytest.mark.bad_input
class TestBadInput:
    x = torch.zeros(3, 2)

    def test_arguments(self) -> None:
        field = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match="weight must be 'variance', 'likelihood', 'none' or a function"):
            objectives.denoising_score_matching(field, weight="snr")
        with pytest.raises(ValueError, match="sigma must be positive"):
            objectives.denoising(lambda x: x, self.x, 0.0)
        with pytest.raises(ValueError, match="projections must be positive"):
            objectives.sliced(lambda x: x, self.x, projections=0)
        with pytest.raises(ValueError, match="x has NaN"):
            objectives.implicit(lambda x: x, self.x * torch.nan)
        for loss in (
            lambda: objectives.explicit(lambda x: x[:, :1], self.x, lambda x: x),
            lambda: objectives.explicit(lambda x: x, self.x, lambda x: x[:, 0]),
            lambda: objectives.denoising(lambda x: x[:, :1], self.x, 0.1),
        ):
            with pytest.raises(ValueError, match="must have the same shape"):
                loss()
        with pytest.raises(ValueError, match=r"score\(x\) and x must have the same shape"):
            objectives.implicit(lambda x: x[:, :1], self.x)
