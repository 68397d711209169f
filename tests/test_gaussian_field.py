"""One Gaussian of any rank: field, flow map and propagator against mixtures, Runge-Kutta, transport and autograd."""

import math

import pytest
import torch
from torch import Tensor

from flowlib import paths, solvers
from flowlib.distributions import Empirical, GaussianMixture
from flowlib.fields import GaussianField, MixtureField

ALL = sorted(paths.SCHEDULES)
LAM = torch.tensor([3.0, 1.0, 0.4, 0.05], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.2, 2.0], dtype=torch.float64)


def basis(d: int = 4) -> Tensor:
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(root)[0]


def gaussian(name: str = "linear", rank: int = 4, residual: float = 0.0) -> GaussianField:
    return GaussianField(MEAN, paths.by_name(name), LAM[:rank], basis()[:, :rank], residual)


def states(n: int = 20, d: int = 4, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def full_mixture(field: GaussianField) -> MixtureField:
    return MixtureField(GaussianMixture(field.mean[None], field.covariance[None]), field.path)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prediction", paths.PREDICTIONS)
@pytest.mark.parametrize(("rank", "residual"), [(4, 0.0), (2, 0.3), (0, 0.7)])
def test_predictions_equal_a_mixture_of_one_component(name: str, prediction: str, rank: int, residual: float) -> None:
    field = gaussian(name, rank, residual)
    mixture = full_mixture(field)
    for t in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            getattr(field, prediction)(states(), t), getattr(mixture, prediction)(states(), t), rtol=1e-10, atol=1e-10
        )
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    torch.testing.assert_close(
        getattr(field, prediction)(states(), t), getattr(mixture, prediction)(states(), t), rtol=1e-10, atol=1e-10
    )


def test_denoiser_is_gaussian_conditioning() -> None:
    field, x, t = gaussian(), states(), 0.35
    covariance = field.covariance
    gain = t * covariance @ torch.linalg.inv(t**2 * covariance + (1 - t) ** 2 * torch.eye(4).double())
    torch.testing.assert_close(field.data(x, t), MEAN + (x - t * MEAN) @ gain.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_flow_map_solves_the_ode(name: str) -> None:
    field = gaussian(name)
    grid = torch.linspace(0.05, 0.95, 1001, dtype=torch.float64)
    solved = solvers.ode(field, states(), times=grid, method="rk4")
    closed = field.flow(states(), 0.05, grid)
    assert float((solved.states - closed).abs().max()) < 1e-8


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_flow_map_solves_the_ode_of_exploding_paths(name: str) -> None:
    """Steps equal in log sigma; the error is relative to the deviation of each mode."""
    field = gaussian(name)
    schedule = field.path.schedule
    ends = [math.log(float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))) for t in (0.0, 1.0)]
    log_sigma = torch.linspace(*ends, 1001, dtype=torch.float64)
    grid = schedule.time_of_log_snr(-2 * log_sigma).clamp(0, 1)
    x = states(scale=schedule.prior_std)
    solved = solvers.ode(field, x, times=grid, method="rk4").end
    gap = (solved - field.flow(x, 0.0, 1.0)) @ field.eigenvectors / field.deviations(1.0)
    assert float(gap.abs().max()) < 1e-8


@pytest.mark.parametrize("name", ALL)
def test_flow_maps_compose_and_invert(name: str) -> None:
    field, x = gaussian(name), states()
    twice = field.flow(field.flow(x, 0.1, 0.4), 0.4, 0.8)
    assert float((twice - field.flow(x, 0.1, 0.8)).abs().max()) < 1e-12
    assert float((field.flow(field.flow(x, 0.3, 0.9), 0.9, 0.3) - x).abs().max()) < 1e-12
    torch.testing.assert_close(field.flow(x, 0.2, torch.tensor([0.2, 0.8], dtype=torch.float64))[0], x)


@pytest.mark.parametrize("name", ALL)
def test_low_rank_equals_full_rank_with_zeros(name: str) -> None:
    low = gaussian(name, rank=2)
    padded = torch.cat([LAM[:2], torch.zeros(2, dtype=torch.float64)])
    full = GaussianField(MEAN, low.path, padded, basis())
    x = states()
    for prediction in paths.PREDICTIONS:
        difference = getattr(low, prediction)(x, 0.6) - getattr(full, prediction)(x, 0.6)
        assert float(difference.abs().max()) < 1e-12
    assert float((low.flow(x, 0.1, 0.9) - full.flow(x, 0.1, 0.9)).abs().max()) < 1e-12
    assert float((low.propagator(0.1, 0.9) - full.propagator(0.1, 0.9)).abs().max()) < 1e-12
    # what is orthogonal to the data's plane shrinks like the noise
    schedule = low.path.schedule
    s, t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    torch.testing.assert_close(
        low.propagator(0.1, 0.9) @ basis()[:, 3], schedule.sigma(t) / schedule.sigma(s) * basis()[:, 3]
    )


@pytest.mark.parametrize("name", ALL)
def test_endpoint_is_the_whitening_map_whatever_the_schedule(name: str) -> None:
    """From x_0 = E x_0 + C_0^(1/2) z the flow ends at E x_1 + C_1^(1/2) z: mu + Sigma^(1/2) z where sigma_1 = 0."""
    field, z = gaussian(name), states()
    schedule, center = field.path.schedule, field.path.center
    ends = []
    for t in torch.tensor([0.0, 1.0], dtype=torch.float64):
        alpha, g = schedule.alpha(t), field.deviations(t)
        ends.append(center + alpha * (MEAN - center) + (z @ basis() * g) @ basis().mT)
    assert float((field.flow(ends[0], 0.0, 1.0) - ends[1]).abs().max()) < 1e-10
    if float(schedule.sigma(torch.tensor(1.0))) == 0:
        root = basis() @ LAM.sqrt().diag() @ basis().mT
        assert float((ends[1] - MEAN - z @ root).abs().max()) < 1e-10


def test_flow_is_the_optimal_transport_map_from_a_standard_normal() -> None:
    """Between N(0, I) and N(mu, S) it is x -> mu + S^(1/2) x, here by another library's formula."""
    import ot

    field = gaussian()
    matrix, offset = ot.gaussian.bures_wasserstein_mapping(
        torch.zeros(4).double(), MEAN, torch.eye(4).double(), field.covariance
    )
    torch.testing.assert_close(field.flow(states(), 0.0, 1.0), states() @ matrix + offset, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_propagator_is_the_jacobian_of_the_flow(name: str) -> None:
    field = gaussian(name, rank=2, residual=0.1)
    x = states(1)
    jacobian = torch.func.jacrev(lambda y: field.flow(y[None], 0.2, 0.9)[0])(x[0])
    torch.testing.assert_close(field.propagator(0.2, 0.9), jacobian, rtol=0, atol=1e-8)
    several = field.propagator(0.2, torch.tensor([0.2, 0.9], dtype=torch.float64))
    torch.testing.assert_close(several, torch.stack([torch.eye(4).double(), jacobian]), rtol=0, atol=1e-8)


def test_propagator_is_the_jacobian_of_a_solve() -> None:
    field = gaussian()
    grid = torch.linspace(0.2, 1, 401, dtype=torch.float64)

    def end(y: Tensor) -> Tensor:
        return solvers.ode(field, y[None], times=grid, method="rk4", differentiable=True, keep=False).end[0]

    jacobian = torch.autograd.functional.jacobian(end, states(1)[0])
    torch.testing.assert_close(field.propagator(0.2, 1.0), jacobian, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_a_mode_emerges_when_its_prediction_has_grown_to_root_half(name: str) -> None:
    field = gaussian(name)
    times = field.emergence_times()
    assert bool((times.diff() > 0).all())  # decreasing eigenvalues, increasing times
    alpha = field.path.schedule.alpha(times)
    grown = alpha * LAM.sqrt() / field.deviations(times).diagonal()
    torch.testing.assert_close(grown, torch.full((4,), math.sqrt(0.5), dtype=torch.float64), rtol=1e-9, atol=0)
    if name == "linear":
        torch.testing.assert_close(times, 1 / (1 + LAM.sqrt()))
    if name == "edm":
        torch.testing.assert_close(field.path.schedule.sigma(times), LAM.sqrt())


@pytest.mark.parametrize("name", ALL)
def test_endpoint_estimate_of_a_mode_moves_one_way(name: str) -> None:
    field, x0 = gaussian(name), states(1)
    if name in ("ve", "edm"):
        x0 = x0 * field.path.prior_std
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    guesses = torch.stack([field.data(x, t) for x, t in zip(field.flow(x0, 0.0, grid), grid, strict=True)])
    steps = ((guesses - MEAN) @ basis())[:, 0].diff(dim=0)
    assert bool(((steps >= -1e-12).all(0) | (steps <= 1e-12).all(0)).all())


def test_data_prediction_of_a_singular_gaussian_is_the_projection_at_the_end() -> None:
    field, x = gaussian(rank=2), states()
    plane = basis()[:, :2]
    torch.testing.assert_close(field.data(x, 1.0), MEAN + (x - MEAN) @ plane @ plane.mT)


def test_fit_recovers_moments_keeps_shapes_and_finds_the_rank() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 1, 2, 3, generator=generator, dtype=torch.float64)
    x[:, 0, 1, 2] = x[:, 0, 0, 0] - 1.0  # five dimensions
    field = GaussianField.fit(x, paths.linear())
    assert field.eigenvalues.shape == (5,)
    assert bool((field.eigenvalues.diff() < 0).all())
    torch.testing.assert_close(field.mean, x.mean(0))
    torch.testing.assert_close(field.covariance, torch.cov(x.flatten(1).mT, correction=0))
    assert field.flow(x, 0.5, torch.tensor([0.5, 1.0]).double()).shape == (2, 50, 1, 2, 3)
    truncated = GaussianField.fit(x, paths.linear(), rank=2)
    torch.testing.assert_close(truncated.eigenvalues, field.eigenvalues[:2])
    single = GaussianField.fit(x.float(), paths.linear())
    assert single.velocity(x.float(), 0.5).dtype == torch.float32


def test_center_shifts_the_field_with_the_data() -> None:
    center = torch.tensor([3.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    plain = GaussianField(MEAN, paths.mean_reverting(0.0, 0.5), LAM, basis())
    moved = GaussianField(MEAN + center, paths.mean_reverting(center, 0.5), LAM, basis())
    torch.testing.assert_close(moved.flow(states() + center, 0.2, 0.8), plain.flow(states(), 0.2, 0.8) + center)
    torch.testing.assert_close(moved.data(states() + center, 0.2), plain.data(states(), 0.2) + center)
    torch.testing.assert_close(moved.velocity(states() + center, 0.2), plain.velocity(states(), 0.2))


def test_one_point_gives_straight_lines() -> None:
    point = GaussianField(MEAN, paths.linear())
    grid = torch.linspace(0, 0.99, 34, dtype=torch.float64)
    solved = solvers.ode(MixtureField(Empirical(MEAN[None]), paths.linear()), states(), times=grid, method="euler")
    lines = grid[:, None, None] * MEAN + (1 - grid)[:, None, None] * states()
    assert float((point.flow(states(), 0.0, grid) - lines).abs().max()) < 1e-12
    assert float((solved.states - lines).abs().max()) < 1e-12


@pytest.mark.parametrize(("skewed", "slope"), [(True, -2.8), (False, -3.7)])
def test_score_of_a_mixture_tends_to_that_of_its_gaussian_at_high_noise(skewed: bool, slope: float) -> None:
    """The relative gap falls like the first cumulant beyond the second: sigma^-3 if skewed, sigma^-4 if symmetric."""
    atoms = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    if skewed:
        atoms = torch.tensor([[-1.0, 0.3], [1.0, 0.0], [0.2, 1.5]], dtype=torch.float64)
    # at alpha = 1: sigma is the noise in units of the data
    path = paths.ve(sigma_min=1.0, sigma_max=1000.0)
    exact, moments = MixtureField(Empirical(atoms), path), GaussianField.fit(atoms, path)
    std = float(moments.covariance.diagonal().mean().sqrt())
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gaps = []
    for sigma in (8 * std, 16 * std):
        t = float(path.schedule.time_of_log_snr(torch.tensor(-2 * math.log(sigma), dtype=torch.float64)))
        x = moments.mean + sigma * z
        gaps.append(float((exact.score(x, t) - moments.score(x, t)).norm() / moments.score(x, t).norm()))
    assert gaps[1] > 1e-13  # above round-off
    assert math.log2(gaps[1] / gaps[0]) < slope


@pytest.mark.bad_input
class TestBadInput:
    def test_shapes_and_variances(self) -> None:
        with pytest.raises(ValueError, match=r"shapes \[r\] and \[4, r\]"):
            GaussianField(MEAN, paths.linear(), LAM, basis()[:, :2])
        with pytest.raises(ValueError, match="both eigenvalues and eigenvectors"):
            GaussianField(MEAN, paths.linear(), LAM)
        with pytest.raises(ValueError, match="not be negative"):
            GaussianField(MEAN, paths.linear(), -LAM, basis())
        with pytest.raises(ValueError, match="not be negative"):
            GaussianField(MEAN, paths.linear(), residual=-1.0)
        with pytest.raises(ValueError, match="orthonormal"):
            GaussianField(MEAN, paths.linear(), LAM, 2 * basis())
        with pytest.raises(TypeError, match="same dtype"):
            GaussianField(MEAN.float(), paths.linear(), LAM, basis())
        with pytest.raises(ValueError, match="center must be a number"):
            GaussianField(MEAN, paths.mean_reverting(torch.zeros(2).double()))

    def test_states_and_times(self) -> None:
        field = gaussian()
        with pytest.raises(ValueError, match="event shape"):
            field.velocity(states(d=3), 0.5)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            field.flow(states(), 0.0, 1.5)
        with pytest.raises(ValueError, match="s must be one time"):
            field.flow(states(2), torch.zeros(2).double(), 0.5)

    def test_singular_covariance_at_the_end(self) -> None:
        field = gaussian(rank=2)
        for prediction in ("velocity", "score", "noise"):
            with pytest.raises(ValueError, match="singular Gaussian has no limit"):
                getattr(field, prediction)(states(), 1.0)
        with pytest.raises(ValueError, match="cannot start at s = 1"):
            field.flow(states(), 1.0, 0.5)

    def test_fit(self) -> None:
        with pytest.raises(ValueError, match="two points"):
            GaussianField.fit(states(1), paths.linear())
        with pytest.raises(ValueError, match=r"rank must lie in 1 ... 4, got 5"):
            GaussianField.fit(states(), paths.linear(), rank=5)
