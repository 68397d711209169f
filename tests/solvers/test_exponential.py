"""Exponential integrators: exact weights, orders, identities between the published methods, both ends, peers."""

import itertools
import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from flowlib import paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import Field, FunctionField, GaussianField, MixtureField
from flowlib.solvers.exponential import moments, weights

METHODS = {  # order on a finite range of lambda, evaluations a step, evaluations to start
    "ddim": (1, 1, 0),
    "dpm_2": (2, 2, 0),
    "dpmpp_2s": (2, 2, 0),
    "dpmpp_2m": (2, 1, 0),
    "dpmpp_3m": (3, 1, 1),
    "deis_2": (2, 1, 0),
    "deis_3": (3, 1, 1),
    "unipc_2": (3, 1, 0),
    "unipc_3": (4, 1, 0),
}


def mixture() -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.5], [1.2, -0.3], [0.2, 1.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64))


def time_at(path: paths.GaussianPath, lam: float) -> float:
    return float(path.schedule.time_of_log_snr(torch.tensor(2 * lam, dtype=torch.float64)))


def problem(name: str = "vp", n: int = 100) -> tuple[MixtureField, Tensor, float, float]:
    """A field, states of its marginal at lambda = -2, and the times of lambda = -2 and 2.5."""
    field = MixtureField(mixture(), paths.by_name(name))
    start, end = time_at(field.path, -2.0), time_at(field.path, 2.5)
    return field, field.sample(n, start, generator=torch.Generator().manual_seed(0)), start, end


def grid(n: int) -> Tensor:
    """Equal steps in lambda over the range of `problem`."""
    field, _, start, end = problem()
    return solvers.clock_grid(field.path, n, "log_snr", start=start, end=end)


@lru_cache(maxsize=1)
def exact_end() -> Tensor:
    field, x, _, _ = problem()
    return solvers.ode(field, x, times=grid(400), method="rk4", keep=False).end


def uneven(start: float, end: float, steps: int = 9) -> Tensor:
    ratio = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.6
    return start + (end - start) * ratio


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def coefficients(path: paths.GaussianPath, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return path.schedule.alpha(times), path.schedule.sigma(times), path.schedule.log_snr(times) / 2


@pytest.mark.parametrize("h", [1e-9, 1e-3, 0.3, 0.999, 1.001, 4.0, 30.0, -1e-3, -0.5, -0.999, -1.001, -5.0])
def test_moments_are_the_integrals_of_powers(h: float) -> None:
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(80)
    tau = (x + 1) / 2
    for k, value in enumerate(moments(h, 5)):
        exact = float((w / 2 * h * np.exp(h * (tau - 1)) * tau**k).sum())
        assert value == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.4], [0.0, -1.3, -2.0], [1.0, 0.0, -0.7], [1.0, 0.0, -0.5, -2.5]])
@pytest.mark.parametrize("h", [0.05, 0.8, 2.5, -0.8])
def test_weights_integrate_polynomials_exactly(nodes: list[float], h: float) -> None:
    w = torch.tensor(weights(nodes, h), dtype=torch.float64)
    for k, moment in enumerate(moments(h, len(nodes))):
        assert float((w * torch.tensor(nodes, dtype=torch.float64) ** k).sum()) == pytest.approx(moment, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_error_decreases_with_the_stated_order(method: str) -> None:
    """Equal steps in lambda from -2 to 2.5, overlapping mixture, median error over points."""
    field, x, _, _ = problem()
    reference = exact_end()
    errors = [
        float((solvers.ode(field, x, times=grid(n), method=method, keep=False).end - reference).norm(dim=1).median())
        for n in (20, 40, 80, 160)
    ]
    slope = sum(slopes(errors)) / 3
    assert slope == pytest.approx(METHODS[method][0], abs=0.25 if METHODS[method][0] > 2 else 0.1), slopes(errors)


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_counted_exactly(method: str) -> None:
    calls = []

    def predict(x: Tensor, t: Tensor, y: int) -> Tensor:
        calls.append(y)
        return -x

    field = FunctionField(predict, paths.vp(), predicts="noise")
    run = solvers.ode(field, torch.ones(3, 2), times=torch.linspace(0.1, 0.9, 8), method=method, y=5)
    _, per_step, start = METHODS[method]
    assert run.nfe == len(calls) == 7 * per_step + start
    assert set(calls) == {5}


def test_ddim_is_dpm_solver_1_is_deis_0_is_the_first_step_of_2m() -> None:
    field, x, start, end = problem()
    pair = torch.tensor([start, (start + end) / 2], dtype=torch.float64)
    alpha, sigma, lam = coefficients(field.path, pair)
    h = lam[1] - lam[0]
    x1, x0 = field.data(x, pair[0]), field.noise(x, pair[0])
    frozen = alpha[1] * x1 + sigma[1] * x0
    solver_1 = alpha[1] / alpha[0] * x - sigma[1] * torch.expm1(h) * x0
    solver_pp_1 = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h) * x1
    for method in ("ddim", "dpmpp_2m", "deis_2", "unipc_2", "unipc_3"):
        step = solvers.ode(field, x, times=pair, method=method).end
        for other in (frozen, solver_1, solver_pp_1):
            assert float((step - other).abs().max()) < 1e-12, method


def test_2m_is_the_published_formula_on_an_uneven_grid() -> None:
    field, x, start, end = problem("cosine")
    times = uneven(start, end)
    alpha, sigma, lam = coefficients(field.path, times)
    h, by_hand, before = lam.diff(), x, None
    for i in range(len(times) - 1):
        value = field.data(by_hand, times[i])
        mixed = value
        if before is not None:
            r = h[i] / h[i - 1]
            mixed = (1 + r / 2) * value - r / 2 * before
        by_hand = sigma[i + 1] / sigma[i] * by_hand - alpha[i + 1] * torch.expm1(-h[i]) * mixed
        before = value
    assert float((solvers.ode(field, x, times=times, method="dpmpp_2m").end - by_hand).abs().max()) < 1e-12


def test_dpm_2_is_the_published_formula() -> None:
    field, x, start, end = problem("linear")
    times = uneven(start, end)
    alpha, sigma, lam = coefficients(field.path, times)
    by_hand = x
    for i in range(len(times) - 1):
        h = lam[i + 1] - lam[i]
        middle = field.path.schedule.time_of_log_snr(2 * lam[i] + h)
        a, s = field.path.schedule.alpha(middle), field.path.schedule.sigma(middle)
        inner = a / alpha[i] * by_hand - s * torch.expm1(h / 2) * field.noise(by_hand, times[i])
        by_hand = alpha[i + 1] / alpha[i] * by_hand - sigma[i + 1] * torch.expm1(h) * field.noise(inner, middle)
    assert float((solvers.ode(field, x, times=times, method="dpm_2").end - by_hand).abs().max()) < 1e-12


def exponential_heun(field: Field, x: Tensor, times: Tensor) -> Tensor:
    """The exponential trapezoid on the noise prediction."""
    alpha, sigma, lam = coefficients(field.path, times)
    for i in range(len(times) - 1):
        h = float(lam[i + 1] - lam[i])
        m0, m1 = moments(-h, 2)
        e0 = field.noise(x, times[i])
        there = alpha[i + 1] / alpha[i] * x + sigma[i + 1] * m0 * e0
        e1 = field.noise(there, times[i + 1])
        x = alpha[i + 1] / alpha[i] * x + sigma[i + 1] * ((m0 - m1) * e0 + m1 * e1)
    return x


def test_dpm_2_and_exponential_heun_share_an_order_not_numbers() -> None:
    field, x, _, _ = problem()
    reference = exact_end()
    errors = [float((exponential_heun(field, x, grid(n)) - reference).norm(dim=1).median()) for n in (20, 40, 80, 160)]
    assert sum(slopes(errors)) / 3 == pytest.approx(2, abs=0.1)
    gap = exponential_heun(field, x, grid(10)) - solvers.ode(field, x, times=grid(10), method="dpm_2").end
    assert float(gap.norm(dim=1).mean()) > 1e-3


def unipc_by_hand(field: Field, x: Tensor, times: Tensor, order: int, b: str) -> Tensor:
    """The predictor-corrector in the paper's own form: R a = phi / B(h), then B(h) a."""
    alpha, sigma, lam = coefficients(field.path, times)
    values: list[Tensor] = []
    start, last = x, []

    def combine(x: Tensor, i: int, ratios: list[float], differences: list[Tensor], base: Tensor, plain: bool) -> Tensor:
        hh = -float(lam[i + 1] - lam[i])
        scale = hh if b == "bh1" else math.expm1(hh)
        phi, right, factorial = math.expm1(hh) / hh - 1, [], 1
        for k in range(1, len(ratios) + 1):
            right.append(phi * factorial / scale)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        a = [0.5] if plain else []
        if ratios and not plain:
            matrix = torch.tensor([[r**k for r in ratios] for k in range(len(ratios))], dtype=torch.float64)
            a = torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist()
        mix = sum(c * d for c, d in zip(a, differences, strict=True)) if ratios else 0.0
        return sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (math.expm1(hh) * base + scale * mix)

    for i in range(len(times) - 1):
        value = field.data(x, times[i])
        if i > 0:
            ratios, differences = last
            new = [*differences, value - values[0]]
            x = combine(start, i - 1, [*ratios, 1.0], new, values[0], plain=len(new) == 1)
        values.insert(0, value)
        start, ratios = x, []
        for k in range(1, min(order, len(values))):
            ratios.append(float((lam[i - k] - lam[i]) / (lam[i + 1] - lam[i])))
        differences = [(values[k + 1] - value) / r for k, r in enumerate(ratios)]
        x = combine(x, i, ratios, differences, value, plain=len(ratios) == 1)
        # what the corrector of this step will need
        last = ratios, differences
    return x


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_is_the_exponential_adams_predictor_corrector(order: int) -> None:
    field, x, start, end = problem()
    times = uneven(start, end, 8)
    ours = solvers.ode(field, x, times=times, method=f"unipc_{order}").end
    assert float((ours - unipc_by_hand(field, x, times, order, "bh2")).abs().max()) < 1e-12


def test_the_b_of_unipc_matters_only_where_one_slope_is_known() -> None:
    field, x, start, end = problem()
    times = uneven(start, end, 8)
    gap = unipc_by_hand(field, x, times[:2], 3, "bh1") - unipc_by_hand(field, x, times[:2], 3, "bh2")
    assert float(gap.abs().max()) < 1e-12  # a DDIM step: no slope
    w = {b: [] for b in ("bh1", "bh2")}
    for b, store in w.items():
        hh = -0.7
        scale = hh if b == "bh1" else math.expm1(hh)
        first = math.expm1(hh) / hh - 1
        right = torch.tensor([first / scale, 2 * (first / hh - 0.5) / scale], dtype=torch.float64)
        matrix = torch.tensor([[1.0, 1.0], [-0.6, 1.0]], dtype=torch.float64)
        store.extend((scale * torch.linalg.solve(matrix, right)).tolist())
    assert w["bh1"] == pytest.approx(w["bh2"], abs=1e-14)
    exact = weights([0.0, -0.6, 1.0], 0.7)
    assert [-w["bh1"][0] / -0.6, -w["bh1"][1]] == pytest.approx(exact[1:], abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_do_not_see_the_path(method: str) -> None:
    lam = torch.linspace(-2, 2.5, 10, dtype=torch.float64)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = []
    for name in ("linear", "cosine", "vp", "edm"):
        path = paths.by_name(name)
        times = path.schedule.time_of_log_snr(2 * lam)
        x = path.schedule.sigma(times[0]) * z
        end = solvers.ode(MixtureField(mixture(), path), x, times=times, method=method).end
        ends.append(end / path.schedule.sigma(times[-1]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_do_not_see_the_head(method: str) -> None:
    exact, x, start, end = problem("cosine")
    times = uneven(start, end, 7)
    expected = solvers.ode(exact, x, times=times, method=method).end
    for kind in paths.PREDICTIONS:
        field = FunctionField(exact.function(kind), exact.path, predicts=kind)
        torch.testing.assert_close(
            solvers.ode(field, x, times=times, method=method).end, expected, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(paths.SCHEDULES))
def test_one_atom_is_solved_exactly(method: str, name: str) -> None:
    """Both predictions are constant along the flow of an atom, so a few steps of any length make no error."""
    path = paths.by_name(name)
    atom = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    field = FunctionField(lambda x, t: atom.expand_as(x), path, predicts="data")
    x0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    times = torch.tensor([0.1, 0.3, 0.35, 0.9], dtype=torch.float64)
    for grid in (times, times.flip(0)):
        x = path.interpolate(x0, atom.expand_as(x0), float(grid[0]))
        end = solvers.ode(field, x, times=grid, method=method).end
        torch.testing.assert_close(end, path.interpolate(x0, atom.expand_as(x0), float(grid[-1])), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_gaussian_is_carried_from_pure_noise_to_the_data(method: str, name: str) -> None:
    """x -> mu + Sigma^(1/2) x, with alpha = 0 at the first time and sigma = 0 at the last."""
    path = paths.by_name(name)
    field = GaussianField(
        torch.tensor([0.7, -0.4], dtype=torch.float64), path,
        torch.tensor([4.0, 0.25], dtype=torch.float64), torch.eye(2, dtype=torch.float64),
    )  # fmt: skip
    x0 = torch.randn(30, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = [
        float((solvers.ode(field, x0, steps=n, method=method).end - field.flow(x0, 0.0, 1.0)).abs().max())
        for n in (50, 100, 200)
    ]
    # equal steps of t leave steps in lambda that do not shrink at the ends: order two with a logarithm at best
    assert errors[2] < (0.05 if METHODS[method][0] == 1 else 4e-3)
    assert errors[2] < errors[0] / (3.5 if METHODS[method][0] == 1 else 6)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_step_lands_on_the_data_prediction(method: str) -> None:
    field = MixtureField(mixture(), paths.linear())
    x0 = torch.randn(10, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    one = solvers.ode(field, x0, steps=1, method=method).end
    torch.testing.assert_close(one, mixture().mean.expand(10, 2))  # from pure noise: the mean
    seen = []
    watch = FunctionField(
        lambda x, t: seen.append(field.data(x, t)) or seen[-1], field.path, predicts="data"
    )  # keep the predictions
    run = solvers.ode(watch, x0, steps=6, method=method)
    torch.testing.assert_close(run.end, seen[-1], rtol=1e-12, atol=1e-12)
    assert torch.isfinite(run.states).all()


@pytest.mark.parametrize("method", METHODS)
def test_backward_undoes_forward(method: str) -> None:
    field, x, _, _ = problem(n=20)
    there = solvers.ode(field, x, times=grid(300), method=method).end
    back = solvers.ode(field, there, times=grid(300).flip(0), method=method).end
    assert float((back - x).norm(dim=1).median()) < (0.05 if METHODS[method][0] == 1 else 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_centre_only_shifts(method: str) -> None:
    plain, moved = paths.mean_reverting(), paths.mean_reverting(center=1.5)
    shifted = GaussianMixture(mixture().means + 1.5, torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    a = solvers.ode(MixtureField(mixture(), plain), x, steps=9, method=method).end
    b = solvers.ode(MixtureField(shifted, moved), x + 1.5, steps=9, method=method).end
    torch.testing.assert_close(a + 1.5, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["dpmpp_2m", "unipc_2"])
def test_what_a_callback_changes_stays_changed(method: str) -> None:
    """With one atom the corrector has nothing to correct, so a shift of the state fades like any noise."""
    path = paths.linear()
    field = FunctionField(lambda x, t: torch.zeros_like(x), path, predicts="data")
    times = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    x = torch.zeros(1, 2, dtype=torch.float64)
    run = solvers.ode(field, x, times=times, method=method, callback=lambda i, t, x: x + 1 if i == 0 else None)
    torch.testing.assert_close(run.end, torch.full((1, 2), 0.4 / 0.6, dtype=torch.float64))


def test_float32_states_lose_no_more_than_float32() -> None:
    field = FunctionField(lambda x, t: torch.tanh(x), paths.vp(), predicts="data")
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(6))
    for method in METHODS:
        single = solvers.ode(field, x, steps=40, method=method).end
        double = solvers.ode(field, x.double(), steps=40, method=method).end
        assert single.dtype == torch.float32
        assert float((single - double).abs().max()) < 2e-4, method


class TestPeers:
    """diffusers steps the same exact noise prediction on its own grid; it computes in float32."""

    def grids(self, scheduler: object, steps: int) -> tuple[MixtureField, Tensor, Tensor]:
        scheduler.set_timesteps(steps)
        field = MixtureField(mixture(), paths.vp(0.1, 20.5))  # a little more noise than the peer's discrete chain
        times = field.path.schedule.time_of_log_snr(-2 * scheduler.sigmas.double().log())
        x = torch.randn(30, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return field, times, x

    def play(
        self, scheduler: object, field: MixtureField, times: Tensor, x: Tensor, noises: list | None = None
    ) -> Tensor:
        for i, t in enumerate(scheduler.timesteps):
            extra = {} if noises is None else {"variance_noise": noises[i].float()}
            x = scheduler.step(field.noise(x.double(), times[i]).float(), t, x.float(), **extra).prev_sample
        return x.double()

    def options(self, **options: object) -> dict:
        return dict(beta_start=1e-4, beta_end=2e-2, lower_order_final=False, final_sigmas_type="sigma_min", **options)

    @pytest.mark.parametrize(("order", "method"), [(1, "ddim"), (2, "dpmpp_2m")])
    def test_dpm_solver_multistep(self, order: int, method: str) -> None:
        diffusers = pytest.importorskip("diffusers")
        peer = diffusers.DPMSolverMultistepScheduler(**self.options(solver_order=order))
        field, times, x = self.grids(peer, 20)
        ours = solvers.ode(field, x, times=times, method=method)
        assert ours.nfe == len(peer.timesteps) == 20
        assert float((ours.end - self.play(peer, field, times, x)).abs().max()) < 1e-5

    def test_dpm_solver_multistep_2m_that_ends_without_noise(self) -> None:
        diffusers = pytest.importorskip("diffusers")
        peer = diffusers.DPMSolverMultistepScheduler(**self.options() | {"final_sigmas_type": "zero"})
        field, times, x = self.grids(peer, 12)
        ours = solvers.ode(field, x, times=times, method="dpmpp_2m").end
        assert float(times[-1]) == 1.0
        assert float((ours - self.play(peer, field, times, x)).abs().max()) < 1e-5

    def test_third_order_of_the_peer_has_half_of_the_curvature_and_order_two(self) -> None:
        """diffusers' third-order update weighs the second divided difference by half of its exact integral."""
        diffusers = pytest.importorskip("diffusers")
        peer = diffusers.DPMSolverMultistepScheduler(**self.options(solver_order=3))
        field, times, x = self.grids(peer, 20)
        assert float((third_order(field, x, times, 0.5) - self.play(peer, field, times, x)).abs().max()) < 1e-5
        field, x, _, _ = problem()
        reference = exact_end()
        for share, order in ((0.5, 2), (1.0, 3)):
            errors = [
                float((third_order(field, x, grid(n), share, warm=True) - reference).norm(dim=1).median())
                for n in (40, 80, 160)
            ]
            assert sum(slopes(errors)) / 2 == pytest.approx(order, abs=0.15)
        ours = solvers.ode(field, x, times=grid(20), method="dpmpp_3m").end
        assert float((third_order(field, x, grid(20), 1.0, warm=True) - ours).abs().max()) < 1e-12

    @pytest.mark.parametrize("order", [2, 3])
    def test_unipc(self, order: int) -> None:
        diffusers = pytest.importorskip("diffusers")
        peer = diffusers.UniPCMultistepScheduler(**self.options(solver_order=order, solver_type="bh2"))
        field, times, x = self.grids(peer, 20)
        ours = solvers.ode(field, x, times=times, method=f"unipc_{order}")
        assert ours.nfe == len(peer.timesteps) == 20
        assert float((ours.end - self.play(peer, field, times, x)).abs().max()) < 2e-5

    @pytest.mark.parametrize("order", [1, 2])
    def test_sde_dpm_solver_with_the_same_noise(self, order: int, monkeypatch) -> None:
        diffusers = pytest.importorskip("diffusers")
        peer = diffusers.DPMSolverMultistepScheduler(
            **self.options(solver_order=order, algorithm_type="sde-dpmsolver++")
        )
        field, times, x = self.grids(peer, 20)
        noises = list(torch.randn(20, *x.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64))
        queue = iter(noises)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: next(queue))
        ours = solvers.exponential_sde(field, x, times=times, order=order)
        assert ours.nfe == len(peer.timesteps) == 20
        assert float((ours.end - self.play(peer, field, times, x, noises)).abs().max()) < 2e-5

    def test_flow_matching_euler_and_heun(self) -> None:
        diffusers = pytest.importorskip("diffusers")
        field = MixtureField(mixture(), paths.linear())
        x = torch.randn(30, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        euler.set_timesteps(10)
        times = 1 - euler.sigmas.double()
        theirs = x
        for i, t in enumerate(euler.timesteps):  # their velocity points to the noise
            theirs = euler.step(-field.velocity(theirs.double(), times[i]).float(), t, theirs.float()).prev_sample
        for method in ("euler", "ddim"):
            ours = solvers.ode(field, x, times=times, method=method).end
            assert float((ours - theirs).abs().max()) < 1e-5
        uniform = 1 - torch.linspace(1, float(euler.sigma_min), 10, dtype=torch.float64)
        torch.testing.assert_close(solvers.shift_times(field.path, uniform, 3.0), times[:-1], rtol=0, atol=1e-6)
        heun = diffusers.FlowMatchHeunDiscreteScheduler()
        heun.set_timesteps(10)
        levels, theirs = heun.sigmas.double(), x
        for i, t in enumerate(heun.timesteps):
            now = 1 - levels[heun.step_index if heun.step_index is not None else 0]
            at = now if i == 0 or heun.state_in_first_order else 1 - levels[heun.step_index + 1]
            theirs = heun.step(-field.velocity(theirs.double(), at).float(), t, theirs.float()).prev_sample
        knots = torch.cat([1 - levels[:1], (1 - levels[1:]).unique()])
        inner = solvers.ode(field, x, times=knots[:-1], method="heun").end
        ours = solvers.ode(field, inner, times=knots[-2:], method="euler").end  # their last step, onto no noise
        assert float((ours - theirs).abs().max()) < 1e-5


def third_order(field: Field, x: Tensor, times: Tensor, share: float, *, warm: bool = False) -> Tensor:
    """Three values by divided differences; `share` of the exact weight of the second difference."""
    alpha, sigma, lam = coefficients(field.path, times)
    h, values = lam.diff(), []
    for i in range(len(times) - 1):
        value = field.data(x, times[i])
        values.insert(0, value)
        step = float(h[i])
        m0, m1, m2 = moments(step, 3)
        if i == 0:
            slope = curve = torch.zeros_like(x)
            if warm:
                middle = field.path.schedule.time_of_log_snr(2 * lam[0] + h[0])
                a, s = field.path.schedule.alpha(middle), field.path.schedule.sigma(middle)
                values[0] = field.data(s / sigma[0] * x + a * moments(step / 2, 1)[0] * value, middle)
        elif i == 1:
            slope, curve = (values[0] - values[1]) * h[1] / h[0], torch.zeros_like(x)
            slope = slope * (m0 / 2 / m1 if not warm else 1)  # the peer's second-order step has the paper's weights
        else:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            first, second = (values[0] - values[1]) / r0, (values[1] - values[2]) / r1
            curve = (first - second) / (r0 + r1)
            slope = first + r0 * curve
        x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (m0 * values[0] + m1 * slope + share * m2 * curve)
        values[0] = value
    return x


@pytest.mark.bad_input
class TestBadInput:
    x = torch.zeros(3, 2, dtype=torch.float64)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_plain_function_has_no_path(self, method: str) -> None:
        with pytest.raises(TypeError, match="needs a Field"):
            solvers.ode(lambda x, t: x, self.x, steps=3, method=method)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_noise_prediction_cannot_leave_pure_noise(self, method: str) -> None:
        noise = FunctionField(lambda x, t: x, paths.linear(), predicts="noise")
        with pytest.raises(ValueError, match="data cannot be computed"):
            solvers.ode(noise, self.x, steps=3, method=method)
