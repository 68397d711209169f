r"""Guidance against closed forms: Gaussians and mixtures, for which guided laws, tilts and the source are known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from flowlib import control, fields, nets, paths, solvers
from flowlib.distributions import GaussianMixture
from flowlib.fields import Field, FunctionField, MixtureField, NetworkField
from flowlib.paths import PREDICTIONS, GaussianPath

PATHS = {"linear": paths.linear(), "cosine": paths.cosine(), "vp": paths.vp(), "ve": paths.ve(0.02, 10.0)}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: float, deviation: float, path: GaussianPath) -> MixtureField:
    return MixtureField(GaussianMixture(tensor(mean)[:, None], deviation**2), path)


def mixtures(path: GaussianPath) -> tuple[MixtureField, MixtureField]:
    """On the line: a law of four bumps, and its condition, the inner two."""
    means, variances = tensor(-2.0, -0.4, 0.8, 2.2)[:, None], tensor(0.2, 0.1, 0.25, 0.3)
    whole = GaussianMixture(means, variances, tensor(0.3, 0.2, 0.2, 0.3))
    inner = GaussianMixture(means[1:3], variances[1:3], tensor(0.5, 0.5))
    return MixtureField(inner, path), MixtureField(whole, path)


def planar(path: GaussianPath, seed: int) -> MixtureField:
    means = 1.5 * torch.randn(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MixtureField(GaussianMixture(means, 0.3), path)


def states(n: int = 40, dim: int = 2, seed: int = 0) -> Tensor:
    return 1.5 * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(n: int = 40, seed: int = 1) -> Tensor:
    return 0.02 + 0.96 * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the combination -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 4.5])
def test_guidance_in_any_head_is_the_same_field(path: GaussianPath, scale: float) -> None:
    """Guide in each of the four predictions, ask for each of the four: sixteen ways, one answer."""
    conditional, unconditional = planar(path, 0), planar(path, 1)
    x, t = states(), times()
    for wanted in PREDICTIONS:
        c, u = (getattr(f, wanted)(x, t) for f in (conditional, unconditional))
        expected = u + scale * (c - u)
        for head in PREDICTIONS:
            heads = [FunctionField(f.function(head), path, head) for f in (conditional, unconditional)]
            answer = getattr(control.guided(*heads, scale), wanted)(x, t)
            size = expected.abs().max().clamp_min(1)
            torch.testing.assert_close(answer / size, expected / size, rtol=0, atol=1e-12)


def test_fields_with_different_heads_are_combined() -> None:
    path, x, t = paths.linear(), states(), times()
    c, u = planar(path, 0), planar(path, 1)
    noise_head = FunctionField(u.function("noise"), path, "noise")
    answer = control.guided(c, noise_head, 3.0).velocity(x, t)
    torch.testing.assert_close(answer, control.guided(c, u, 3.0).velocity(x, t), rtol=0, atol=1e-11)


def test_a_closed_form_stays_finite_at_both_ends() -> None:
    """No conversion is put between the fields and the caller."""
    c, u = mixtures(paths.linear())
    x = states(dim=1)
    for t in (0.0, 1.0):
        for kind in PREDICTIONS:
            assert bool(torch.isfinite(getattr(control.guided(c, u, 3.0), kind)(x, t)).all())


def test_classifier_guidance_with_the_exact_posterior_is_classifier_free_guidance() -> None:
    """w times the gradient of log p_t(c | x) = log p_t(x | c) - log p_t(x) + const."""
    c, u = mixtures(paths.vp())
    with_classifier = control.conditioned(u, lambda x, t: 2.5 * (c.log_prob(x, t) - u.log_prob(x, t)))
    x = states(dim=1)
    for t in (0.1, 0.5, 0.9):
        free = control.guided(c, u, 2.5).score(x, t)
        torch.testing.assert_close(with_classifier.score(x, t), free, rtol=1e-9, atol=1e-9)


def test_scales_that_depend_on_time_are_taken_row_by_row() -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    x, t = states(), times()
    field = control.guided(c, u, lambda t: 1 + 4 * t)
    one_by_one = [control.guided(c, u, 1 + 4 * float(s)).velocity(x[i : i + 1], s) for i, s in enumerate(t)]
    torch.testing.assert_close(field.velocity(x, t), torch.cat(one_by_one), rtol=1e-12, atol=1e-12)


def test_interval_guides_inside_and_leaves_the_conditional_field_outside() -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    field, x = control.guided(c, u, control.interval(3.0, 0.3, 0.6)), states()
    inside = control.guided(c, u, 3.0)
    for t, same in ((0.1, c), (0.3, inside), (0.5, inside), (0.6, inside), (0.8, c)):
        torch.testing.assert_close(field.velocity(x, t), same.velocity(x, t), rtol=1e-13, atol=1e-13)


# --- conditions and batches ------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A network with labels and a context vector that records the batches it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nets.MLP(dim=2, width=16, classes=5).double()
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        self.batches.append(x.shape[0])
        out = self.net(x, t, y=y)
        return out if context is None else out * context


def test_label_guidance_of_a_network_is_one_batch_and_equals_two_calls() -> None:
    net = Recorder()
    field, x, y = NetworkField(net, paths.linear()), states(), torch.arange(40) % 5
    for t in (torch.tensor(0.3, dtype=torch.float64), times()):
        c, u = field.velocity(x, t, y=y), field.velocity(x, t)
        net.batches.clear()
        answer = control.classifier_free(field, 2.5).velocity(x, t, y=y)
        assert net.batches == [80]
        torch.testing.assert_close(answer, u + 2.5 * (c - u), rtol=1e-12, atol=1e-12)


def test_negative_condition_takes_the_place_of_the_null_condition() -> None:
    net = Recorder()
    field, x, y, n = NetworkField(net, paths.linear()), states(), torch.full((40,), 1), torch.full((40,), 4)
    c, u = field.velocity(x, 0.3, y=y), field.velocity(x, 0.3, y=n)
    net.batches.clear()
    answer = control.classifier_free(field, 2.0, negative={"y": n}).velocity(x, 0.3, y=y)
    assert net.batches == [80]
    torch.testing.assert_close(answer, 2 * c - u, rtol=1e-12, atol=1e-12)


def test_a_condition_without_a_null_tensor_is_dropped_in_a_call_of_its_own() -> None:
    net = Recorder()
    field, x, context = NetworkField(net, paths.linear()), states(), states(seed=5)
    c, u = field.velocity(x, 0.3, context=context), field.velocity(x, 0.3)
    net.batches.clear()
    answer = control.classifier_free(field, 3.0).velocity(x, 0.3, context=context)
    assert net.batches == [40, 40]
    torch.testing.assert_close(answer, u + 3 * (c - u), rtol=1e-12, atol=1e-12)


def test_a_plain_function_is_never_shown_the_label_minus_one() -> None:
    def velocity(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is None or bool((y >= 0).all())
        return x if y is None else x + y[:, None]

    field = FunctionField(velocity, paths.linear())
    x = states()
    answer = control.classifier_free(field, 2.0).velocity(x, 0.5, y=torch.ones(40, dtype=torch.int64))
    torch.testing.assert_close(answer, x + 2)


def test_composition_adds_the_pulls_of_all_conditions() -> None:
    net = Recorder()
    field, x = NetworkField(net, paths.linear()), states()
    labels = [torch.full((40,), k) for k in (1, 3)]
    first, second = (field.velocity(x, 0.4, y=y) for y in labels)
    null = field.velocity(x, 0.4)
    net.batches.clear()
    both = control.compose(field, [(1.5, {"y": labels[0]}), (-0.5, {"y": labels[1]})])
    expected = null + 1.5 * (first - null) - 0.5 * (second - null)
    torch.testing.assert_close(both.velocity(x, 0.4), expected, rtol=1e-12, atol=1e-12)
    assert net.batches == [80]  # the weights of the two conditions sum to one: the null call is not needed
    assert both.evaluations(torch.tensor(0.4)) == 2


# --- counting --------------------------------------------------------------------------------------------------------


def sampled_nfe(field: Field, method: str) -> int:
    x0 = states()
    if method in ("euler", "heun", "ab2", "ddim"):
        return solvers.ode(field, x0, steps=10, method=method, keep=False).nfe
    if method == "sde":
        return solvers.sde(field, x0, steps=10, keep=False).nfe
    if method == "ancestral":
        return solvers.ancestral(field, x0, steps=10, keep=False).nfe
    return solvers.predictor_corrector(
        field, x0, times=torch.linspace(0.05, 0.95, 11), corrector_steps=1, keep=False
    ).nfe


@pytest.mark.parametrize("method", ["euler", "heun", "ab2", "ddim", "sde", "ancestral", "pc"])
def test_every_solver_counts_both_evaluations(method: str) -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    plain = sampled_nfe(c, method)
    assert sampled_nfe(control.guided(c, u, 3.0), method) == 2 * plain
    assert sampled_nfe(control.guided(c, u, 1.0), method) == plain
    assert sampled_nfe(control.guided(c, u, 0.0), method) == plain
    assert sampled_nfe(control.guided(control.guided(c, u, 3.0), u, 2.0), method) == 3 * plain


def test_an_interval_pays_only_inside() -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    field = control.guided(c, u, control.interval(3.0, 0.25, 0.55))
    assert solvers.ode(field, states(), steps=10).nfe == 10 + 3  # t = 0.3, 0.4, 0.5
    retimed = fields.RetimedField(field, paths.cosine())
    bent = fields.PerturbedField(field, lambda x, t: torch.zeros_like(x))
    assert solvers.ode(bent, states(), steps=10).nfe == 13
    guided_times = paths.retime(torch.linspace(0.05, 0.95, 10), paths.cosine(), paths.linear()).time
    inside = int(((guided_times >= 0.25) & (guided_times <= 0.55)).sum())
    assert solvers.ode(retimed, states(), times=torch.linspace(0.05, 0.95, 10)).nfe == 9 + inside


def test_a_classifier_on_a_guided_field_leaves_its_count() -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    grid = torch.linspace(0.05, 0.95, 11)
    for field, calls in ((c, 1), (control.guided(c, u, 3.0), 2)):
        pulled = control.conditioned(field, lambda x, t: -x.square().sum(1))
        assert solvers.ode(pulled, states(), times=grid, keep=False).nfe == 10 * calls
        assert control.guided(pulled, u, 2.0).evaluations(grid[3]) == calls + 1


# --- what the guided flow samples ------------------------------------------------------------------------------------


def affine_flow(field: Field, start: float = 0.0) -> tuple[float, float]:
    """Slope and offset of the flow map of a one-dimensional field that is linear in x."""
    grid = torch.linspace(start, 1, 81, dtype=torch.float64)
    ends = solvers.ode(field, tensor(0.0, 1.0)[:, None], times=grid, method="rk4", keep=False).end[:, 0]
    return float(ends[1] - ends[0]), float(ends[0])


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize(("w", "rho"), [(0.5, 0.5), (1.0, 0.7), (2.0, 0.5), (3.0, 0.8), (5.0, 0.6), (2.0, 1.2)])
def test_guided_variance_of_gaussians_is_rho_to_the_2w(path: GaussianPath, w: float, rho: float) -> None:
    """N(0, 1) against N(m, rho^2): schedule-free, and not the tilt's variance unless w is 0 or 1."""
    m = 0.7
    slope, offset = affine_flow(control.guided(gaussian(m, rho, path), gaussian(0.0, 1.0, path), w))
    assert slope**2 == pytest.approx(rho ** (2 * w), abs=1e-6)
    tilt = 1 / (1 + w * (rho**-2 - 1))
    if w > 1:
        assert slope**2 < tilt - 1e-3
    h = np.linspace(0, 1 / rho, 20001)
    integral = np.trapezoid((1 + (1 - rho**2) * h**2) ** ((w - 1) / 2), h)
    assert offset == pytest.approx(w * m * rho**w * integral, abs=1e-6)


def test_guided_mean_for_three_is_a_polynomial() -> None:
    path, m, rho = paths.linear(), 0.7, 0.5
    _, offset = affine_flow(control.guided(gaussian(m, rho, path), gaussian(0.0, 1.0, path), 3.0))
    assert offset == pytest.approx(m * (1 + 2 * rho**2), abs=1e-7)
    assert offset > 3 * m / (3 - 2 * rho**2) + 0.1  # the mean of the tilt


def test_guided_variance_with_signal_at_the_start() -> None:
    """Where alpha_0 > 0 the starting variance is multiplied by the ratios of both marginal variances."""
    path, w, rho = paths.vp(), 3.0, 0.5
    conditional, unconditional = gaussian(0.7, rho, path), gaussian(0.0, 1.5, path)
    start = torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = path.schedule.alpha(start), path.schedule.sigma(start)
    ratios = [v / float(alpha**2 * v + sigma**2) for v in (1.5**2, rho**2)]
    slope, _ = affine_flow(control.guided(conditional, unconditional, w), start=0.3)
    assert slope**2 == pytest.approx(ratios[0] ** (1 - w) * ratios[1] ** w, rel=1e-6)


def test_guidance_never_contracts_less_than_the_tilt() -> None:
    """Bernoulli: rho^{2w} <= 1 / (1 + w (rho^-2 - 1)) for w >= 1 where the tilt exists, with equality at rho = 1."""
    for w in (1.0, 1.5, 2.0, 4.0, 8.0):
        for rho in np.linspace(0.2, 2.0, 37):
            precision = 1 + w * (rho**-2 - 1)
            if precision > 0:
                assert rho ** (2 * w) <= 1 / precision + 1e-12


def fisher_residual(
    field: control.CombinedField, laws: list[tuple[float, MixtureField]], x: Tensor, t: float
) -> Tensor:
    """d/dt log pi + div v + v . s without the normaliser, by automatic differentiation."""
    clock = torch.full((x.shape[0],), t, dtype=torch.float64)
    fed = clock.clone().requires_grad_()
    log_pi = sum(w * law.log_prob(x, fed) for w, law in laws)
    (rate,) = torch.autograd.grad(log_pi.sum(), fed)
    v, divergence = solvers.divergence(field.function("velocity"), x, clock)
    return rate + divergence + (v * field.score(x, clock)).sum(1)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_source_closes_the_continuity_equation_of_the_tilt(path: GaussianPath) -> None:
    """The residual differs from the source by a function of the time alone; three terms, one of negative weight."""
    laws = [planar(path, seed) for seed in range(3)]
    scales = (2.5, -0.7)
    terms = [control.Term(law, {}) for law in laws]
    field = control.CombinedField(terms[0], list(zip(scales, terms[1:], strict=True)))
    weighted = list(zip((1 - sum(scales), *scales), laws, strict=True))
    x = states()
    for t in (0.15, 0.5, 0.85):
        difference = fisher_residual(field, weighted, x, t) - field.source(x, t)
        size = field.source(x, t).abs().max()
        assert float(difference.max() - difference.min()) < 1e-9 * float(size.clamp_min(1))
        assert float(field.source(x, t).std()) > 1e-3 * float(size)  # and is not itself constant


def test_source_of_two_terms_is_a_square() -> None:
    path, w, t, x = paths.linear(), 3.0, 0.6, states(dim=1)
    c, u = mixtures(path)
    square = (c.velocity(x, t) - u.velocity(x, t)).square().sum(1)
    expected = w * (w - 1) * t / (1 - t) * square
    torch.testing.assert_close(control.guided(c, u, w).source(x, t), expected, rtol=1e-10, atol=1e-10)
    scores = (c.score(x, t) - u.score(x, t)).square().sum(1)
    half_g2 = path.drift_diffusion(t)[1] / 2
    torch.testing.assert_close(expected, w * (w - 1) * half_g2 * scores, rtol=1e-6, atol=1e-6)


def tilt_on_a_line(c: MixtureField, u: MixtureField, w: float, grid: Tensor) -> Tensor:
    """The normalised tilt on a uniform grid."""
    log_pi = w * c.log_prob(grid[:, None], 1.0) + (1 - w) * u.log_prob(grid[:, None], 1.0)
    density = (log_pi - log_pi.max()).exp()
    return density / (density.sum() * (grid[1] - grid[0]))


def test_law_of_the_guided_flow_is_the_tilt_times_the_missing_source() -> None:
    """log q - log pi = -int (h - E h) dt: by the likelihood of the flow and by the source along the same trajectory."""
    c, u = mixtures(paths.linear())
    w = 3.0
    field = control.guided(c, u, w)
    x1 = torch.linspace(-1.5, 1.6, 60, dtype=torch.float64)[:, None]
    clock = torch.linspace(0, 1, 201, dtype=torch.float64)
    log_q, trajectory = solvers.log_likelihood(field, x1, times=clock, method="rk4")
    log_tilt = w * c.log_prob(x1, 1.0) + (1 - w) * u.log_prob(x1, 1.0)
    sources = torch.stack(
        [field.source(x, t) for x, t in zip(trajectory.states[1:], trajectory.times[1:], strict=True)]
    )
    sources = torch.cat([torch.zeros(1, 60, dtype=torch.float64), sources])  # at t = 1 it vanishes
    integral = torch.trapezoid(sources.flip(0), clock, dim=0)
    gap = log_q - log_tilt
    assert float(gap.std()) > 0.1  # the two laws differ
    assert float((gap + integral).std()) < 1e-3


@pytest.mark.parametrize("path", [paths.linear(), paths.cosine(), paths.vp()], ids=["linear", "cosine", "vp"])
def test_weighted_particles_sample_the_tilt_and_the_guided_flow_does_not(path: GaussianPath) -> None:
    c, u = mixtures(path)
    w, n = 3.0, 4000
    field = control.guided(c, u, w)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    density = tilt_on_a_line(c, u, w, grid)
    cdf = density.cumsum(0) * (grid[1] - grid[0])

    def distance(x: Tensor) -> float:
        return float(stats.kstest(x[:, 0].numpy(), lambda a: np.interp(a, grid.numpy(), cdf.numpy())).statistic)

    generator = torch.Generator().manual_seed(0)
    x0 = path.sample_prior((n, 1), generator=generator, dtype=torch.float64)
    corrected = control.tilted(field, x0, steps=200, eta=2.0, generator=generator)
    plain = solvers.ode(field, x0, steps=200, keep=False)
    critical = 1.63 / math.sqrt(n)  # one per cent, for independent draws
    assert distance(plain.end) > 3 * critical
    assert distance(corrected.end) < 2 * critical
    assert corrected.nfe == 400
    milder = control.tilted(field, x0, steps=200, generator=generator)  # the default level of noise
    assert distance(milder.end) < distance(plain.end) / 2


def test_one_growing_scale_makes_the_guided_flow_of_gaussians_exact() -> None:
    """w(t) = w (tau^2 / rho^2) (1 + rho^2 SNR) / (1 + tau^2 SNR) ends in the tilt on every path."""
    m, rho, w = 0.7, 0.6, 3.0
    tau2 = 1 / (1 + w * (rho**-2 - 1))
    for path in (paths.linear(), paths.cosine()):

        def scale(t: Tensor, path: GaussianPath = path) -> Tensor:
            a2, s2 = path.schedule.alpha(t) ** 2, path.schedule.sigma(t) ** 2
            return w * tau2 / rho**2 * (s2 + rho**2 * a2) / (s2 + tau2 * a2)

        slope, offset = affine_flow(control.guided(gaussian(m, rho, path), gaussian(0.0, 1.0, path), scale))
        assert slope**2 == pytest.approx(tau2, abs=1e-7)
        assert offset == pytest.approx(w * m * tau2 / rho**2, abs=1e-7)


def test_equal_covariances_leave_nothing_missing() -> None:
    """Then the scores differ by a constant: guided flow and tilt agree, and the class mean is moved along a line."""
    path, w = paths.cosine(), 4.0
    field = control.guided(gaussian(0.9, 0.5, path), gaussian(0.2, 0.5, path), w)
    h = field.source(states(dim=1), 0.6)
    assert float(h.std()) < 1e-9 * float(h.mean())
    slope, offset = affine_flow(field)
    assert (slope, offset) == pytest.approx((0.5, (1 - w) * 0.2 + w * 0.9), abs=1e-6)


def test_particles_of_a_network_share_one_condition() -> None:
    net = Recorder()
    field, x0, y = NetworkField(net, paths.linear()), states(), torch.full((40,), 2)
    net.batches.clear()
    run = control.tilted(control.classifier_free(field, 2.0), x0, steps=5, generator=torch.Generator(), y=y)
    assert (run.nfe, net.batches) == (10, [80] * 5)


def test_autoguidance_is_extrapolation_in_the_error_of_the_model() -> None:
    """Models blurred by d^2 and k d^2: with w = k/(k-1) the variance is right up to the order d^4."""
    path, k = paths.linear(), 4.0
    errors = []
    for d in (0.2, 0.1):
        strong, weak = (gaussian(0.5, math.sqrt(1 + f * d**2), path) for f in (1.0, k))
        slope, _ = affine_flow(control.guided(strong, weak, k / (k - 1)))
        errors.append(abs(slope**2 - 1))
        assert errors[-1] < 0.1 * d**2  # the error without guidance is d^2
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.2)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_bad_input() -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    with pytest.raises(TypeError, match="guidance combines Fields, got function"):
        control.guided(lambda x, t: x, u, 2.0)
    with pytest.raises(ValueError, match="fields must share a path to be combined"):
        control.guided(c, planar(paths.vp(), 1), 2.0)
    with pytest.raises(TypeError, match="scale must be a number or a function of the time, got str"):
        control.guided(c, u, "large")
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        control.classifier_free(c, math.nan)
    with pytest.raises(ValueError, match="pulls is empty"):
        control.compose(c, [])
    with pytest.raises(ValueError, match=r"0 <= low <= high <= 1, got 0\.6 and 0\.4"):
        control.interval(3.0, 0.6, 0.4)
    with pytest.raises(ValueError, match="scale must be finite, got inf"):
        control.interval(math.inf, 0.4, 0.6)
    with pytest.raises(ValueError, match="sigma = 0"):
        control.guided(c, u, 2.0).source(states(), 1.0)


@pytest.mark.bad_input
def test_bad_input_of_the_population() -> None:
    c, u = planar(paths.linear(), 0), planar(paths.linear(), 1)
    field, x0 = control.guided(c, u, 2.0), states()
    with pytest.raises(TypeError, match="field must be a CombinedField"):
        control.tilted(c, x0, steps=5)
    with pytest.raises(ValueError, match="scales of field must be numbers"):
        control.tilted(control.guided(c, u, control.interval(2.0, 0.2, 0.8)), x0, steps=5)
    with pytest.raises(ValueError, match="y must be the same for the whole batch"):
        control.tilted(field, x0, steps=5, y=torch.arange(40))
    with pytest.raises(ValueError, match=r"alpha < 0.01 sigma.*at t = 0.5"):
        control.tilted(field, x0, times=torch.linspace(0.5, 1, 5))
