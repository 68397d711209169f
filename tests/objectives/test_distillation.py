"""Distillation: the regression of a flow at the times where the sampler asks."""

import pytest
import torch

from flowlib import fields, nets, objectives, paths, solvers, training
from flowlib.couplings import PairStore
from flowlib.fields import FunctionField


def batch(n: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x0, torch.stack([x0[:, 0] + 2, 3 * x0[:, 1]], 1)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_lattice_draws_the_times_of_euler_steps_equally_often(steps: int) -> None:
    t = objectives.lattice(steps)(6000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).t
    grid, counts = t.unique(return_counts=True)
    torch.testing.assert_close(grid, torch.arange(steps, dtype=torch.float64) / steps)
    expected = 6000 / steps
    assert ((counts - expected).abs() <= 4 * (expected * (1 - 1 / steps)) ** 0.5).all()


def test_one_step_loss_is_the_error_of_one_euler_step(generator: torch.Generator) -> None:
    x0, x1 = batch()
    field = FunctionField(lambda x, t: torch.sin(x) + t.reshape(-1, 1), paths.linear())
    value = objectives.distillation(field)(x0, x1, generator=generator).total
    end = solvers.ode(field, x0, steps=1).end
    torch.testing.assert_close(value, (end - x1).square().mean())


@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_a_metric_sees_the_ends(predicts: str, generator: torch.Generator) -> None:
    x0, x1 = batch()
    field = FunctionField(lambda x, t: torch.sin(x), paths.linear(), predicts=predicts)
    loss = objectives.distillation(field, metric=lambda a, b: (a - b).abs().sum(1))
    end = solvers.ode(field, x0, steps=1).end
    torch.testing.assert_close(loss(x0, x1, generator=generator).total, (end - x1).abs().sum(1).mean())


@pytest.mark.parametrize("steps", [1, 4])
def test_the_velocity_of_straight_pairs_has_no_loss(steps: int, generator: torch.Generator) -> None:
    """x1 = A x0 + b: the velocity is (x1 - x0) of the x0 behind x_t, and Euler steps of any number are exact."""
    x0, x1 = batch()
    slope, shift = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.0], dtype=torch.float64)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.reshape(-1, 1)
        start = (x - t * shift) / (1 - t + t * slope)
        return (slope - 1) * start + shift

    field = FunctionField(velocity, paths.linear())
    metric = lambda a, b: (a - b).square().sum(1)
    for loss in (
        objectives.distillation(field, steps=steps),
        objectives.distillation(field, steps=steps, metric=metric),
    ):
        assert float(loss(x0, x1, generator=generator).total) < 1e-20
    torch.testing.assert_close(solvers.ode(field, x0, steps=steps).end, x1)


def test_more_steps_train_only_at_their_times(generator: torch.Generator) -> None:
    seen = []

    def record(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return x

    x0, x1 = batch()
    objectives.distillation(FunctionField(record, paths.linear()), steps=4)(x0, x1, generator=generator)
    assert set(seen[0].tolist()) == {0.0, 0.25, 0.5, 0.75}


def test_a_distilled_step_learns_its_pairs() -> None:
    x0, x1 = (x.float() for x in batch())
    torch.manual_seed(0)
    field = fields.NetworkField(nets.MLP(dim=2, width=32, depth=2), paths.linear())
    store = PairStore([{"x0": x0, "x1": x1}])
    training.fit(
        field, objectives.distillation(field), pairs=store.sample, steps=300, batch_size=128, lr=1e-2, ema=0.95
    )
    error = (solvers.ode(field, x0, steps=1).end - x1).square().sum(1).mean()
    assert float(error) < 0.01 * float((x1 - x1.mean(0)).square().sum(1).mean())


@pytest.mark.bad_input
def test_bad_input() -> None:
    field = FunctionField(lambda x, t: x, paths.linear())
    with pytest.raises(ValueError, match="steps must be positive"):
        objectives.distillation(field, steps=0)
    with pytest.raises(ValueError, match=r"path must be paths.linear\(\)"):
        objectives.distillation(FunctionField(lambda x, t: x, paths.cosine()))
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"metric must return shape \[3\]"):
        objectives.distillation(field, metric=lambda a, b: (a - b).square().mean())(x, x)
    with pytest.raises(ValueError, match="same shape"):
        objectives.distillation(field, metric=lambda a, b: (a - b).square().sum(1))(x, x[:2])
