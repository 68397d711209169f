"""The potential network is a gradient whatever its weights, and it can be trained and sampled like any other."""

import pytest
import torch

from flowlib import data, fields, metrics, nets, objectives, paths, solvers, training
from flowlib.distributions import Normal


def network(dim: int | tuple[int, ...] = 2, dtype: torch.dtype = torch.float64) -> nets.PotentialMLP:
    torch.manual_seed(0)
    return nets.PotentialMLP(dim, width=16).to(dtype)


def test_output_is_the_gradient_of_the_potential() -> None:
    net = network()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, h = torch.rand(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 1e-5
    for i in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[i]
        slope = (net.potential(x + step, t) - net.potential(x - step, t)) / (2 * h)
        torch.testing.assert_close(net(x, t)[:, i], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_jacobian_is_symmetric_and_loops_vanish(dtype: torch.dtype, tolerance: float) -> None:
    net = network((1, 4, 4), dtype)
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    assert float(metrics.jacobian_asymmetry(net, x, 0.3).max()) < tolerance
    assert float(metrics.jacobian_asymmetry(net, x, 0.3, probes=4).max()) < 10 * tolerance
    with torch.no_grad():
        loops = metrics.circulation(net, x, 0.3, 0.5, normalise=True)
    assert float(loops.abs().max()) < tolerance


def test_time_matters_and_samples_do_not_see_each_other() -> None:
    net = network()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t = torch.full((4,), 0.3, dtype=torch.float64)
    assert float((net(x, t) - net(x, 1 - t)).detach().abs().max()) > 1e-3
    torch.testing.assert_close(net(x, t)[:1], net(x[:1], t[:1]))


def test_nothing_is_recorded_under_no_grad_and_the_input_is_left_alone() -> None:
    net, x, t = network(), torch.zeros(3, 2, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        assert not net(x, t).requires_grad
    assert net(x, t).requires_grad
    assert not x.requires_grad


def test_training_and_sampling_through_a_network_field() -> None:
    torch.manual_seed(0)
    field = fields.NetworkField(nets.PotentialMLP(2, width=32), paths.linear())
    history = training.fit(
        field, objectives.flow_matching(field), source=Normal(2).sample, target=data.toys.eight_gaussians().sample,
        steps=150, batch_size=128, lr=3e-3, ema=None,
    )  # fmt: skip
    assert history.smoothed(20)[-1] < 0.9 * history.smoothed(20)[19]
    end = solvers.ode(field, torch.randn(50, 2), steps=10).end
    assert not end.requires_grad
    assert float(end.norm(dim=1).mean()) > 1.2
    log_prob, _ = solvers.log_likelihood(field, end[:5], steps=5)
    assert bool(log_prob.isfinite().all())


@pytest.mark.bad_input
def test_bad_input() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        nets.PotentialMLP(2, width=0)
    with pytest.raises(ValueError, match="event shape"):
        network()(torch.zeros(3, 3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
