"""ODE solvers: measured orders, exact identities, counted evaluations, peers."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import FunctionField, MixtureField
from flowlib.solvers.trajectory import CountedVelocity

FIXED = {  # method: (order, evaluations a step, evaluations to start)
    "euler": (1, 1, 0),
    "midpoint": (2, 2, 0),
    "heun": (2, 2, 0),
    "rk4": (4, 4, 0),
    "ab2": (2, 1, 1),
    "ddim": (1, 1, 0),
}


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.5], [1.2, -0.3], [0.2, 1.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64))


def points(n: int = 40) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("method", FIXED)
def test_error_decreases_with_the_stated_order(method: str) -> None:
    field = MixtureField(mixture(), paths.cosine())
    reference = solvers.ode(field, points(), steps=2000, method="rk4", keep=False).end
    sizes = [20, 40, 80, 160] if FIXED[method][0] < 4 else [10, 20, 40, 80]
    errors = [
        float((solvers.ode(field, points(), steps=n, method=method, keep=False).end - reference).norm(dim=1).median())
        for n in sizes
    ]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert sum(slopes) / len(slopes) == pytest.approx(FIXED[method][0], abs=0.3), slopes


@pytest.mark.parametrize("method", FIXED)
def test_evaluations_are_counted_exactly(method: str) -> None:
    calls = 0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -x

    field = FunctionField(velocity, paths.linear())
    trajectory = solvers.ode(field, points(), steps=7, method=method)
    _, per_step, start = FIXED[method]
    assert trajectory.nfe == calls == 7 * per_step + start


@pytest.mark.parametrize("method", [*FIXED, "adaptive"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_gaussian_is_carried_to_gaussian(method: str, name: str) -> None:
    """The flow of N(0, 1) to N(m, r^2) is x -> m + r x on paths with alpha(0) = sigma(1) = 0."""
    target = GaussianMixture(torch.tensor([[0.7, -0.4]], dtype=torch.float64), 4.0)
    field = MixtureField(target, paths.by_name(name))
    end = solvers.ode(field, points(), steps=400, method=method, rtol=1e-8, atol=1e-8, keep=False).end
    tolerance = {1: 0.03, 2: 1e-3, 4: 1e-8}[FIXED.get(method, (4,))[0]] if method != "adaptive" else 1e-6
    assert float((end - (target.mean + 2 * points())).abs().max()) < tolerance


def test_vp_flow_of_a_gaussian_has_its_closed_form() -> None:
    """x_t = sqrt(V_t / V_0) x_0 with V = alpha^2 r^2 + sigma^2, also where sigma_dot is infinite."""
    path = paths.vp()
    field = MixtureField(GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.25), path)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    variance = path.schedule.alpha(ends) ** 2 * 0.25 + path.schedule.sigma(ends) ** 2
    end = solvers.ode(field, points(), steps=200, method="rk4", keep=False).end
    torch.testing.assert_close(end, (variance[1] / variance[0]).sqrt() * points(), rtol=1e-5, atol=1e-6)


def test_ddim_is_euler_on_the_linear_path() -> None:
    field = MixtureField(mixture(), paths.linear())
    a = solvers.ode(field, points(), steps=13, method="ddim").states
    b = solvers.ode(field, points(), steps=13, method="euler").states
    assert float((a - b).abs().max()) < 1e-12


def test_ddim_is_a_rotation_on_the_cosine_path_and_euler_is_not() -> None:
    field, x = MixtureField(mixture(), paths.cosine()), points()
    times = torch.tensor([0.3, 0.45], dtype=torch.float64)
    angle = math.pi / 2 * 0.15
    schedule = field.path.schedule
    x1, x0 = field.data(x, times[0]), field.noise(x, times[0])
    expected = x * math.cos(angle) + (schedule.sigma(times[0]) * x1 - schedule.alpha(times[0]) * x0) * math.sin(angle)
    ddim = solvers.ode(field, x, times=times, method="ddim").end
    assert float((ddim - expected).abs().max()) < 1e-12
    assert float((solvers.ode(field, x, times=times, method="euler").end - expected).abs().max()) > 0.01


@pytest.mark.parametrize("name", sorted(paths.SCHEDULES))
def test_ddim_towards_noise_undoes_frozen_predictions(name: str) -> None:
    """With one atom the data prediction is constant, so a DDIM step of any length is exact, both ways."""
    path = paths.by_name(name)
    atom = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    field = FunctionField(lambda x, t: atom.expand_as(x), path, predicts="data")
    times = torch.tensor([0.1, 0.9], dtype=torch.float64)
    x0 = points()
    x = path.interpolate(x0, atom.expand_as(x0), 0.1)
    there = solvers.ode(field, x, times=times, method="ddim").end
    torch.testing.assert_close(there, path.interpolate(x0, atom.expand_as(x0), 0.9), rtol=1e-10, atol=1e-10)
    back = solvers.ode(field, there, times=times.flip(0), method="ddim").end
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)


def test_ddim_agrees_with_diffusers_on_its_own_grid() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, clip_sample=False, set_alpha_to_one=False,
        timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(20)
    x = points().float()
    ours = theirs = x
    target = GaussianMixture(torch.tensor([[0.5, -0.5], [-1.0, 1.0]]), 0.3)
    levels = scheduler.alphas_cumprod

    def noise(x: Tensor, level: Tensor) -> Tensor:
        """The exact noise prediction at alpha^2 = level, by hand."""
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        variance = level * 0.3 + 1 - level
        offsets = x[:, None] - alpha * target.means
        weights = torch.softmax(-offsets.square().sum(2) / (2 * variance), 1)
        return sigma * (weights[..., None] * offsets).sum(1) / variance

    path = paths.vp(0.1, 20.0)
    # the times of our path that have the peer's signal-to-noise ratios
    log_snr = torch.log(levels.double() / (1 - levels.double()))
    grid = path.schedule.time_of_log_snr(log_snr)
    steps = scheduler.timesteps
    final = torch.tensor([steps[-1] - 1000 // 20]).clamp_min(0)
    times = grid[torch.cat([steps, final])]
    field = FunctionField(lambda x, t: noise(x, path.schedule.alpha(t) ** 2), path, predicts="noise")
    for t in steps:
        theirs = scheduler.step(noise(theirs, levels[t]), t, theirs).prev_sample
    keep = times[:-1] if times[-1] <= times[-2] else times
    ours = solvers.ode(field, ours.double(), times=keep, method="ddim").end.float()
    if keep is not times:  # the last step of the peer stays at the first level
        assert len(keep) == len(steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def test_adaptive_is_torchdiffeq() -> None:
    from torchdiffeq import odeint

    field = MixtureField(mixture(), paths.linear())
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    ours = solvers.ode(field, points(), times=times, method="adaptive", rtol=1e-6, atol=1e-6)
    theirs = odeint(
        lambda t, x: field.velocity(x, t.clamp(0, 1)), points(), times, rtol=1e-6, atol=1e-6, options={"step_t": times}
    )
    torch.testing.assert_close(ours.states, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["rk4", "adaptive"])
def test_inversion_and_sampling_are_inverse(method: str) -> None:
    field = MixtureField(mixture(), paths.vp())
    x1 = mixture().sample(30, generator=torch.Generator().manual_seed(1))
    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    there = solvers.invert(field, x1, times=times, method=method, rtol=1e-8, atol=1e-8)
    assert float(there.times[0]) == 1.0
    back = solvers.ode(field, there.end, times=times, method=method, rtol=1e-8, atol=1e-8)
    assert float((back.end - x1).abs().max()) < 1e-5


def test_end_points_are_exact_and_states_are_kept() -> None:
    field = MixtureField(mixture(), paths.linear())
    full = solvers.ode(field, points(), steps=10)
    assert float(full.times[0]) == 0.0
    assert float(full.times[-1]) == 1.0
    assert full.states.shape == (11, 40, 2)
    ends = solvers.ode(field, points(), steps=10, keep=False)
    assert torch.equal(ends.end, full.end)
    assert len(ends) == 2


def test_callback_replaces_the_state() -> None:
    seen = []

    def clamp(i: int, t: Tensor, x: Tensor) -> Tensor:
        seen.append((i, float(t)))
        return x.clamp(-0.1, 0.1)

    out = solvers.ode(lambda x, t: torch.ones_like(x), points(), steps=4, callback=clamp)
    assert seen == [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0)]
    assert float(out.end.abs().max()) <= 0.1


def test_gradients_flow_only_if_asked() -> None:
    rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert not solvers.ode(lambda x, t: rate * x, points(), steps=50).end.requires_grad
    end = solvers.ode(lambda x, t: rate * x, points(), steps=50, differentiable=True).end
    (gradient,) = torch.autograd.grad(end.sum(), rate)
    assert float(gradient) == pytest.approx(float(points().sum()) * math.exp(-1), rel=0.02)


def test_conditions_reach_the_field() -> None:
    field = FunctionField(lambda x, t, y: y[:, None].to(x) * torch.ones_like(x), paths.linear())
    y = torch.arange(40)
    end = solvers.ode(field, torch.zeros(40, 2), steps=4, y=y).end
    torch.testing.assert_close(end[:, 0], y.float())


@pytest.mark.bad_input
class TestBadInput:
    field = MixtureField(mixture(), paths.linear())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 10, "method": "runge"}, "method must be one of 'euler'"),
            ({"steps": 0}, "steps must be positive"),
            ({}, "give either steps or times"),
            ({"steps": 3, "times": torch.tensor([0.0, 1.0]).double()}, "give either steps or times"),
            ({"times": torch.tensor([0.0, 1.5]).double()}, r"times must lie in \[0, 1\]"),
            ({"times": torch.tensor([0.0, 0.5, 0.5]).double()}, "strictly increasing"),
            ({"times": torch.tensor([0.0]).double()}, "at least two times"),
            ({"steps": 3, "rtol": -1.0}, "rtol must be positive"),
        ],
    )
    def test_options(self, options, message) -> None:
        with pytest.raises(ValueError, match=message):
            solvers.ode(self.field, points(), **options)

    def test_states(self) -> None:
        with pytest.raises(ValueError, match="NaN"):
            solvers.ode(self.field, torch.full((2, 2), math.nan).double(), steps=2)
        with pytest.raises(ValueError, match="empty"):
            solvers.ode(self.field, torch.zeros(0, 2).double(), steps=2)

    def test_singular_ends(self) -> None:
        noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match=r"velocity cannot be computed from the noise.*t = 0"):
            solvers.ode(noise, points(), steps=4)

    def test_types(self) -> None:
        with pytest.raises(TypeError, match="field must be a Field or a function"):
            CountedVelocity(3.0, {}, torch.tensor([0.0]))
        with pytest.raises(TypeError, match=r"ddim.*needs a Field"):
            solvers.ode(lambda x, t: x, points(), steps=2, method="ddim")
        with pytest.raises(ValueError, match="callback cannot be used"):
            solvers.ode(self.field, points(), method="adaptive", callback=lambda i, t, x: None)
        with pytest.raises(ValueError, match="got neither"):
            solvers.invert(self.field, points())
