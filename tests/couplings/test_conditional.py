"""Pairing that keeps conditions: optimal within a class, and noise stays independent of the class."""

import itertools

import pytest
import torch

from flowlib import couplings, objectives, paths
from flowlib.fields import FunctionField


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    y = torch.randint(0, 3, (n,), generator=generator)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x1 = torch.randn(n, 2, generator=generator, dtype=torch.float64) + 3 * y[:, None]
    return x0, x1, y


def test_it_is_the_cheapest_permutation_that_keeps_every_label() -> None:
    x0, x1, y = batch(7)
    index = couplings.condition_aware_ot()(x0, x1, y=y).index
    cost = torch.cdist(x0, x1).square()
    rows = torch.arange(7)
    allowed = [torch.tensor(p) for p in itertools.permutations(range(7)) if torch.equal(y[list(p)], y)]
    best = min(float(cost[rows, p].sum()) for p in allowed)
    assert torch.equal(y[index], y)
    assert float(cost[rows, index].sum()) == pytest.approx(best, rel=1e-12)


def test_each_class_keeps_the_noise_it_was_given() -> None:
    """Plain pairing sends a class the noise nearest to it; this one the noise of its own rows."""
    x0, x1, y = batch(600)
    aware = couplings.condition_aware_ot()(x0, x1, y=y)
    plain = couplings.exact_ot(x0, x1)
    biased = max(float(x0[y[plain.index] == k].mean(0).norm()) for k in range(3))
    kept = max(float(x0[y[aware.index] == k].mean(0).norm()) for k in range(3))
    assert kept < 4 * (2 / 150) ** 0.5 < biased
    for k in range(3):
        assert torch.equal(x0[y[aware.index] == k], x0[y == k])


def test_vector_conditions_interpolate_between_plain_pairing_and_none() -> None:
    x0, x1, _ = batch(50)
    context = torch.arange(50, dtype=torch.float64)[:, None]
    plain = couplings.exact_ot(x0, x1).index
    weak, strong = (couplings.condition_aware_ot(by="context", strength=k) for k in (1e-9, 1e6))
    assert torch.equal(weak(x0, x1, context=context).index, plain)
    assert torch.equal(strong(x0, x1, context=context).index, torch.arange(50))


def test_the_objective_hands_over_the_labels_and_moves_them_with_their_data() -> None:
    x0, x1, y = batch(90)
    x1[:, 0] = y.double()  # the label is written in the data
    seen = []

    def predict(x, t, y):
        seen.append((x, y))
        return x

    field = FunctionField(predict, paths.linear(), predicts="data")
    objectives.flow_matching(field, coupling=couplings.condition_aware_ot())(x0, x1, t=torch.ones(90).double(), y=y)
    (x, labels) = seen[0]
    assert torch.equal(x[:, 0].long(), labels)
    assert torch.equal(labels, y)


@pytest.mark.bad_input
def test_the_condition_must_be_there_and_fit() -> None:
    x0, x1, y = batch(6)
    pair = couplings.condition_aware_ot()
    with pytest.raises(ValueError, match="'y', which was not given"):
        pair(x0, x1)
    with pytest.raises(ValueError, match="y must have 6 rows"):
        pair(x0, x1, y=y[:3])
    with pytest.raises(ValueError, match="give strength"):
        pair(x0, x1, y=x0)
    with pytest.raises(ValueError, match="leave strength out"):
        couplings.condition_aware_ot(strength=1.0)(x0, x1, y=y)
    with pytest.raises(ValueError, match="strength"):
        couplings.condition_aware_ot(strength=0.0)
