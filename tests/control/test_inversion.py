"""Inversion and editing: controlled fields in closed form, the identity behind OTIP, and its schedule."""

import functools
import itertools
import math

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from flowlib import control, couplings, data, fields, paths, solvers
from flowlib.distributions import GaussianMixture

LINEAR = paths.linear()
N = 28
TIMES = torch.linspace(0, 1, N + 1, dtype=torch.float64)
SHIFTED = TIMES / (3 - 2 * TIMES)  # many small steps near the noise, as shifted schedules have


def draw(n: int, seed: int, dim: int = 6) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture_field(path: paths.GaussianPath = LINEAR) -> fields.MixtureField:
    return fields.MixtureField(GaussianMixture(1.5 * draw(7, 0), 0.09), path)


def gaussian_field(variances: tuple[float, ...] = (0.3, 1.0, 2.5)) -> fields.GaussianField:
    mean = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)[: len(variances)]
    return fields.GaussianField(mean, LINEAR, torch.tensor(variances).double(), torch.eye(len(variances)).double())


def window(eta: float, stop: int, steps: int = N) -> Tensor:
    return torch.where(torch.arange(steps) < stop, eta, 0.0).double()


def edit(field: fields.Field, x: Tensor, times: Tensor = TIMES, **conditions) -> Tensor:
    return solvers.ode(field, x, times=times, **conditions).end


# ---------------------------------------------------------------- the two controls


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
def test_control_toward_data_mixes_data_predictions(name: str) -> None:
    field, x, y1 = mixture_field(paths.by_name(name)), draw(5, 1), draw(5, 2)
    pulled = control.toward_data(field, y1, 0.4)
    expected = 0.6 * field.data(x, 0.3) + 0.4 * y1
    torch.testing.assert_close(pulled.data(x, 0.3), expected, rtol=1e-10, atol=1e-10)


def test_control_toward_noise_mixes_noise_predictions() -> None:
    field, x, y0 = mixture_field(), draw(5, 1), draw(5, 2)
    pulled = control.toward_noise(field, y0, 0.4)
    expected = 0.6 * field.noise(x, 0.3) + 0.4 * y0
    torch.testing.assert_close(pulled.noise(x, 0.3), expected, rtol=1e-10, atol=1e-10)


def test_pull_is_that_of_rf_inversion() -> None:
    """v + eta ((y1 - x)/(1 - t) - v) and v + gamma ((x - y0)/t - v)."""
    field, x, y = mixture_field(), draw(5, 1), draw(5, 2)
    v = field.velocity(x, 0.3)
    expected = v + 0.9 * ((y - x) / 0.7 - v)
    torch.testing.assert_close(control.toward_data(field, y, 0.9).velocity(x, 0.3), expected, rtol=1e-12, atol=1e-12)
    expected = v + 0.5 * ((x - y) / 0.3 - v)
    torch.testing.assert_close(control.toward_noise(field, y, 0.5).velocity(x, 0.3), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("times", [TIMES, SHIFTED], ids=["uniform", "shifted"])
def test_full_control_ends_at_the_known_state(times: Tensor) -> None:
    field, x, y = mixture_field(), draw(5, 1), draw(5, 2)
    torch.testing.assert_close(edit(control.toward_data(field, y, 1.0), x, times), y, rtol=0, atol=1e-12)
    there = solvers.invert(control.toward_noise(field, y, 1.0), x, times=times, method="euler").end
    torch.testing.assert_close(there, y, rtol=0, atol=1e-12)


def test_last_step_divides_by_its_own_length_and_not_by_zero() -> None:
    field, x, y = mixture_field(), draw(5, 1), draw(5, 2)
    pulled = control.toward_data(field, y, 1.0)
    c = pulled.velocity(x, 1 - 1 / N)
    torch.testing.assert_close(c, (y - x) * N, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(edit(control.toward_data(field, y, 0.5), x)).all()


@pytest.mark.parametrize("eta", [0.2, 0.7])
def test_pure_control_shrinks_the_gap_by_the_product(eta: float) -> None:
    """With a model that stands still, x - y1 is multiplied by prod (1 - eta h/(1 - t_i))."""
    still = fields.FunctionField(lambda x, t: torch.zeros_like(x), LINEAR)
    x, y1, k = draw(4, 1), draw(4, 2), window(eta, 9)
    end = edit(control.toward_data(still, y1, control.on_grid(k, SHIFTED)), x, SHIFTED)
    # the model asks for v = 0, so what is left of it is (1 - eta) * 0
    factor = (1 - k * SHIFTED.diff() / (1 - SHIFTED[:-1])).prod()
    torch.testing.assert_close(end - y1, factor * (x - y1), rtol=1e-12, atol=1e-12)
    assert math.isclose(
        float((1 - eta / torch.arange(1, N + 1).double()).prod()),
        math.exp(math.lgamma(N + 1 - eta) - math.lgamma(1 - eta) - math.lgamma(N + 1)),
        rel_tol=1e-12,
    )


def test_constant_control_of_a_gaussian_has_the_closed_form() -> None:
    r"""x = t mu + V^{(1-eta)/2}(1-t)^eta [w0 + eta (y-mu) int_0^t V^{-(1-eta)/2}(1-u)^{-1-eta} du]."""
    mu, lam, eta, end, x0, y1 = 0.7, 2.5, 0.6, 0.8, -0.3, 1.9
    field = gaussian_field((lam,))
    pulled = control.toward_data(field, torch.tensor([[y1]]).double(), eta)
    times = torch.linspace(0, end, 401, dtype=torch.float64)
    measured = solvers.ode(pulled, torch.tensor([[x0]]).double(), times=times, method="rk4").end
    u = torch.linspace(0, end, 20001, dtype=torch.float64)
    V = u**2 * lam + (1 - u) ** 2
    integral = torch.trapezoid(V ** (-(1 - eta) / 2) * (1 - u) ** (-1 - eta), u)
    w = V[-1] ** ((1 - eta) / 2) * (1 - end) ** eta * (x0 + eta * (y1 - mu) * integral)
    assert abs(float(measured - (w + end * mu))) < 1e-7


# ---------------------------------------------------------------- OTIP


def otip(field, y1, eta, s, times=TIMES, **options):
    inner = control.toward_data(field, y1, control.on_grid(s, times), **options)
    return control.toward_data(inner, y1, control.on_grid(eta, times))


def test_no_transport_is_rf_inversion_and_no_control_the_plain_sampler_bit_for_bit() -> None:
    field, x, y1, none = mixture_field(), draw(5, 1), draw(5, 2), window(0.0, 0)
    eta = window(0.9, 7)
    rf = control.toward_data(field, y1, control.on_grid(eta, TIMES))
    assert torch.equal(edit(otip(field, y1, eta, none, clip=10.0), x), edit(rf, x))
    assert torch.equal(edit(otip(field, y1, none, none), x), edit(field, x))


@pytest.mark.parametrize("times", [TIMES, SHIFTED], ids=["uniform", "shifted"])
@pytest.mark.parametrize(("eta", "stop", "s0"), [(0.9, 7, 0.3), (0.0, 7, 0.3), (0.5, 20, 1.0)])
def test_otip_is_rf_inversion_with_another_schedule(times: Tensor, eta: float, stop: int, s0: float) -> None:
    field, x, y1 = mixture_field(), draw(20, 1), draw(20, 2)
    k, s = window(eta, stop), control.transport_schedule(N, s0, dtype=torch.float64)
    matched = control.toward_data(field, y1, control.on_grid(control.eta_effective(k, s), times))
    torch.testing.assert_close(
        edit(otip(field, y1, k, s, times), x, times), edit(matched, x, times), rtol=0, atol=1e-12
    )


def test_clipping_bounds_each_token() -> None:
    field = mixture_field()
    x, y1 = draw(40, 1).reshape(20, 2, 6), 30 * draw(40, 2).reshape(20, 2, 6)
    tokens = fields.FunctionField(lambda x, t: torch.zeros_like(x), LINEAR)
    c = control.toward_data(tokens, y1, 1.0, clip=10.0).velocity(x, 0.2)
    assert float(c.norm(dim=-1).max()) <= 10 + 1e-12
    small = control.toward_data(field, x[:, 0] + 0.1, 1.0, clip=10.0).velocity(x[:, 0], 0.2)
    torch.testing.assert_close(small, torch.full_like(small, 0.1 / 0.8), rtol=1e-10, atol=1e-10)  # short: untouched


def test_clipping_with_bound_that_is_never_reached_changes_nothing() -> None:
    field, x, y1 = mixture_field(), draw(5, 1), draw(5, 2)
    eta, s = window(0.9, 7), control.transport_schedule(N, 0.3, dtype=torch.float64)
    torch.testing.assert_close(edit(otip(field, y1, eta, s, clip=1e6), x), edit(otip(field, y1, eta, s), x))


def test_rescaled_correction_has_the_stated_length() -> None:
    """|delta| = s |d - v| |v| / |d| for each token."""
    model = mixture_field()
    field = fields.FunctionField(lambda x, t: model.velocity(x.reshape(-1, 6), t).reshape(x.shape), LINEAR)
    x, y1 = draw(40, 1).reshape(20, 2, 6), draw(40, 2).reshape(20, 2, 6)
    v, d = field.velocity(x, 0.2), (y1 - x) / 0.8
    delta = control.toward_data(field, y1, 0.3, rescale=True).velocity(x, 0.2) - v
    expected = 0.3 * (d - v).norm(dim=-1) * v.norm(dim=-1) / d.norm(dim=-1)
    torch.testing.assert_close(delta.norm(dim=-1), expected, rtol=1e-10, atol=1e-10)


def test_rescaling_leaves_a_token_alone_that_is_at_its_target() -> None:
    """There |v| / |c| is infinite: the other tokens are corrected as ever, and nothing is NaN."""
    field = fields.FunctionField(lambda x, t: torch.ones_like(x), LINEAR)
    x, y1 = draw(4, 1).reshape(2, 2, 6), draw(4, 2).reshape(2, 2, 6)
    reference = control.toward_data(field, y1, 0.3, rescale=True).velocity(x, 0.2)
    met = y1.clone()
    met[0, 1] = x[0, 1]
    out = control.toward_data(field, met, 0.3, rescale=True).velocity(x, 0.2)
    assert torch.equal(out[0, 1], torch.ones_like(out[0, 1]))
    reference[0, 1] = 1.0
    torch.testing.assert_close(out, reference)


def test_mask_confines_the_pull() -> None:
    field, x, y1 = mixture_field(), draw(5, 1), draw(5, 2)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    masked = control.toward_data(field, y1, 0.7, mask=mask).velocity(x, 0.2)
    free, full = field.velocity(x, 0.2), control.toward_data(field, y1, 0.7).velocity(x, 0.2)
    torch.testing.assert_close(masked, torch.where(mask > 0, full, free))


@pytest.mark.parametrize("s0", [0.1, 0.3, 1.0])
def test_schedule_ramps_up_falls_and_is_continuous(s0: float) -> None:
    s = control.transport_schedule(N, s0, dtype=torch.float64)
    relative = torch.arange(N) / N
    assert float(s[0]) == 0
    assert float(s.max()) <= s0
    assert torch.equal(s[relative >= 0.3], torch.zeros_like(s[relative >= 0.3]))
    assert bool((s[1:9] > 0).all())
    fine = control.transport_schedule(20000, s0, dtype=torch.float64)
    assert float(fine.diff().abs().max()) < 30 * s0 / 20000  # no jump: the slope is at most 1/ramp + pi/(2 phase)
    assert abs(float(fine.max()) - s0) < 0.07 * s0  # ramp and fall meet at 0.05, where the cosine is at 0.93


def test_schedule_by_hand() -> None:
    s = control.transport_schedule(28, 0.3, dtype=torch.float64)
    for i in range(28):
        rho = i / 28
        hand = 0.3 * 0.5 * (1 + math.cos(math.pi * rho / 0.3)) * min(1, rho / 0.05) if rho < 0.3 else 0.0
        assert math.isclose(float(s[i]), hand, abs_tol=1e-15)


def test_schedule_without_ramp_starts_at_full_strength() -> None:
    assert float(control.transport_schedule(28, 0.4, ramp=0.0, dtype=torch.float64)[0]) == pytest.approx(0.4)


def test_strengths_may_differ_from_sample_to_sample() -> None:
    field, x, y1 = mixture_field(), draw(3, 1), draw(3, 2)
    etas = torch.stack([window(0.2, 7), window(0.9, 14), window(1.0, 28)], 1)
    together = edit(control.toward_data(field, y1, control.on_grid(etas, TIMES)), x)
    for j in range(3):
        alone = control.toward_data(field, y1[j : j + 1], control.on_grid(etas[:, j], TIMES))
        torch.testing.assert_close(together[j : j + 1], edit(alone, x[j : j + 1]), rtol=1e-9, atol=1e-9)


def test_on_grid_gives_the_value_of_the_step() -> None:
    values = torch.arange(N, dtype=torch.float64)
    k = control.on_grid(values, SHIFTED)
    for i, t in enumerate(SHIFTED[:-1].unbind()):
        assert float(k(t)) == i
        assert float(k((t + SHIFTED[i + 1]) / 2)) == i
    assert float(k(SHIFTED[-1])) == N - 1


def test_conditions_reach_the_model() -> None:
    field = fields.FunctionField(lambda x, t, y: torch.ones_like(x) * y[:, None], LINEAR)
    pulled = control.toward_data(field, draw(2, 1), 0.0)
    y = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert torch.equal(pulled.velocity(draw(2, 2), 0.1, y=y)[:, 0], y)


# ---------------------------------------------------------------- plain inversion


def test_velocity_of_an_exact_field_at_the_data_is_the_state() -> None:
    """E[x0 | x_1] = 0, so v(x, 1) = x: no division by 1 - t in the first step of an inversion."""
    x = draw(5, 1)
    torch.testing.assert_close(mixture_field().velocity(x, 1.0), x, rtol=1e-12, atol=1e-12)


def test_euler_inversion_and_generation_differ_at_first_order() -> None:
    field, y1 = gaussian_field(), draw(50, 3, 3)
    errors = []
    for steps in (20, 40, 80, 160, 320):
        there = solvers.invert(field, y1, steps=steps, method="euler").end
        errors.append(float((solvers.ode(field, there, steps=steps).end - y1).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


def test_runge_kutta_inversion_returns() -> None:
    field, y1 = gaussian_field(), draw(50, 3, 3)
    there = solvers.invert(field, y1, steps=N, method="rk4").end
    back = solvers.ode(field, there, steps=N, method="rk4").end
    assert float((back - y1).abs().max()) < 1e-6


def test_inversion_of_a_gaussian_whitens() -> None:
    field, y1 = gaussian_field(), draw(50, 3, 3)
    there = solvers.invert(field, y1, steps=400, method="rk4").end
    mean, variances = (
        torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64),
        torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64),
    )
    torch.testing.assert_close(there, (y1 - mean) / variances.sqrt(), rtol=0, atol=1e-6)
    torch.testing.assert_close(there, field.flow(y1, 1.0, 0.0), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the stochastic variant


def test_controlled_field_has_the_drift_and_noise_of_the_stochastic_variant() -> None:
    """2 v - x/t and 2 (1 - t)/t: the sampling family at the level of the reverse SDE."""
    field, x, y1, t = mixture_field(), draw(5, 1), draw(5, 2), torch.tensor(0.3, dtype=torch.float64)
    pulled = control.toward_data(field, y1, 0.6)
    rate = solvers.eta_squared(pulled, "reverse")(t)
    torch.testing.assert_close(rate, 2 * (1 - t) / t)
    v = pulled.velocity(x, t)
    torch.testing.assert_close(v + rate / 2 * pulled.score(x, t), 2 * v - x / t, rtol=1e-10, atol=1e-10)


def test_stochastic_and_deterministic_forms_share_marginals() -> None:
    """After a deterministic first step; both carry a bias of order 1/N in the variance, half a per cent here."""
    field, chains, steps = gaussian_field(), 10_000, 400
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(chains, 3, generator=generator, dtype=torch.float64)
    first = solvers.ode(field, x0, times=times[:2]).end
    noisy = solvers.sde(field, first, times=times[1:], eta="reverse", generator=generator, keep=False).end
    plain = solvers.ode(field, x0, times=times, keep=False).end
    variances = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    mean = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64)
    for x in (noisy, plain):
        assert float(((x.mean(0) - mean) / (variances / chains).sqrt()).abs().max()) < 4
        error = (x.var(0) / variances - 1).abs() - 0.01
        assert float(error.max()) < 4 * math.sqrt(2 / chains)


def test_early_euler_maruyama_has_too_much_noise_by_one_over_the_step() -> None:
    """For data at the origin, after one deterministic and k stochastic small steps the variance is 1 + 1/k too large.

    With t = k h the step is x <- (1 - 1/k) x + sqrt(2/k) z up to O(h), and V = 1 + 1/k solves its recursion.
    """
    steps, variance = 1_000_000, 1.0
    atom = fields.FunctionField(lambda x, t: torch.zeros_like(x), LINEAR, predicts="data")
    one = torch.ones(1, 1, dtype=torch.float64)
    for k in range(1, 30):
        t, h = torch.tensor(k / steps, dtype=torch.float64), 1 / steps
        rate = solvers.eta_squared(atom, "reverse")(t)
        slope = float(atom.velocity(one, t) + rate / 2 * atom.score(one, t))
        variance = (1 + h * slope) ** 2 * variance + h * float(rate)
        assert math.isclose(variance, 1 + 1 / k, rel_tol=1e-3)


# ---------------------------------------------------------------- transport between populations


def test_log_domain_sinkhorn_agrees_with_pot() -> None:
    x, y = draw(20, 1), draw(25, 2) + 1
    cost = couplings.squared_distances(x, y)
    theirs = ot.sinkhorn(np.full(20, 1 / 20), np.full(25, 1 / 25), cost.numpy(), 5.0, stopThr=1e-11)
    mine = couplings.sinkhorn_plan(cost, 5.0, tolerance=1e-12, iterations=20000)
    assert float((mine - torch.as_tensor(theirs)).abs().max()) < 1e-6


def test_coupling_of_one_draw_is_one_and_plain_sinkhorn_underflows_where_the_log_domain_does_not() -> None:
    x, y = draw(1, 1, 64), draw(1, 2, 64)
    assert float(couplings.sinkhorn_plan(couplings.squared_distances(x, y), 0.1)) == pytest.approx(1.0, abs=1e-12)
    images = 20 * draw(4, 1, 64)
    cost = couplings.squared_distances(images, images + 5)
    assert float(torch.exp(-cost / 0.1).max()) == 0.0
    plan = couplings.sinkhorn_plan(cost, 0.1)
    torch.testing.assert_close(plan, torch.eye(4, dtype=torch.float64) / 4, rtol=0, atol=1e-9)


def test_population_target_on_the_sample_is_the_barycentric_projection() -> None:
    before, after = draw(30, 1), draw(25, 2) + 2
    plan = couplings.sinkhorn_potentials(before, after, 1.5, iterations=5000, tolerance=1e-9)
    expected = plan.conditional_mean(after)
    measured = control.population_target(before, before, after, 1.5, iterations=5000, tolerance=1e-9)
    torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-9)


def test_population_target_of_a_population_to_itself_is_the_identity_for_small_regularisation() -> None:
    """So the population pull becomes OTIP's: T = id."""
    before = draw(30, 1)
    torch.testing.assert_close(control.population_target(before, before, before, 1e-3), before, rtol=0, atol=1e-6)


def test_population_target_keeps_shape_and_dtype() -> None:
    digits = data.digits.load("test")
    three, eight = digits.of_class(3).x, digits.of_class(8).x
    target = control.population_target(three[:4], three[4:], eight, 4.0)
    assert target.shape == (4, 1, 8, 8)
    assert target.dtype == torch.float32
    assert float(target.min()) >= float(eight.min()) - 1e-6  # a convex combination


# ---------------------------------------------------------------- FlowEdit


@pytest.mark.parametrize("samples", [1, 4])
def test_flowedit_between_equal_gaussians_is_the_optimal_map(samples: int, generator: torch.Generator) -> None:
    """The translation by the difference of the means, whatever the noise and the number of steps."""
    variances, means = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64), draw(2, 4, 3)
    before, after = (fields.GaussianField(m, LINEAR, variances, torch.eye(3).double()) for m in means)
    y1 = draw(10, 5, 3)
    run = control.flowedit(before, after, y1, steps=7, samples=samples, generator=generator)
    torch.testing.assert_close(run.end, y1 + means[1] - means[0], rtol=0, atol=1e-12)
    assert run.nfe == 14 * samples


def test_flowedit_takes_a_network_whose_labels_belong_to_the_batch(generator: torch.Generator) -> None:
    """With one shift for each label, every row moves by its own shift, whatever the number of draws."""
    model = fields.FunctionField(lambda x, t, y: x - x + y[:, None], LINEAR)
    y1, old, new = draw(4, 5), draw(4, 6)[:, 0], draw(4, 7)[:, 0]
    before, after = (fields.FunctionField(functools.partial(model.evaluate, y=y), LINEAR) for y in (old, new))
    end = control.flowedit(before, after, y1, steps=5, samples=3, generator=generator).end
    torch.testing.assert_close(end, y1 + (new - old)[:, None], rtol=0, atol=1e-12)


def test_flowedit_averages_the_draws_of_a_step() -> None:
    before, after = gaussian_field((0.3, 1.0, 2.5)), gaussian_field((1.0, 0.5, 0.7))
    y1 = draw(200, 5, 3)
    ends = [
        control.flowedit(before, after, y1, steps=6, samples=m, generator=torch.Generator().manual_seed(seed)).end
        for m, seed in [(1, 0), (1, 1), (16, 2), (16, 3)]
    ]
    single, many = (ends[0] - ends[1]).square().mean(), (ends[2] - ends[3]).square().mean()
    assert 8 < float(single / many) < 32  # a linear model: sixteen draws, a sixteenth of the variance


# ---------------------------------------------------------------- bad input


@pytest.mark.bad_input
class TestBadInput:
    def test_times_where_a_control_has_no_limit(self) -> None:
        field, y = mixture_field(), draw(5, 1)
        with pytest.raises(ValueError, match="t = 1"):
            solvers.ode(control.toward_data(field, y, 0.5), y, steps=4, method="heun")
        with pytest.raises(ValueError, match="t = 0"):
            solvers.invert(control.toward_noise(field, y, 0.5), y, steps=4, method="heun")

    def test_shapes_dtypes_and_kinds(self) -> None:
        field, y = mixture_field(), draw(5, 1)
        with pytest.raises(ValueError, match=r"y1 and x must have the same shape, got \[5, 6\] and \[4, 6\]"):
            control.toward_data(field, y, 0.5).velocity(y[:4], 0.5)
        with pytest.raises(TypeError, match="y0 and x must have the same dtype"):
            control.toward_noise(field, y.float(), 0.5).velocity(y, 0.5)
        with pytest.raises(TypeError, match="field must be a Field"):
            control.toward_data(lambda x, t: x, y, 0.5)
        with pytest.raises(TypeError, match="after must be a Field"):
            control.flowedit(field, lambda x, t: x, y, steps=3)
        with pytest.raises(ValueError, match="clip must be positive"):
            control.toward_data(field, y, 0.5, clip=0.0)
        with pytest.raises(ValueError, match="samples must be positive"):
            control.flowedit(field, field, y, steps=3, samples=0)
        with pytest.raises(ValueError, match="y1 and before must have the same event shape"):
            control.population_target(y, y[:, :2], y, 1.0)

    def test_schedules(self) -> None:
        with pytest.raises(ValueError, match="one longer than values"):
            control.on_grid(torch.zeros(3), torch.zeros(3))
        with pytest.raises(ValueError, match="strictly increasing"):
            control.on_grid(torch.zeros(3), torch.tensor([0.0, 0.5, 0.4, 1.0]))
        with pytest.raises(ValueError, match="phase must lie in"):
            control.transport_schedule(28, 0.3, phase=0.0)
        with pytest.raises(ValueError, match="must not be negative"):
            control.transport_schedule(28, -0.3)
        with pytest.raises(TypeError, match="steps must be an int"):
            control.transport_schedule(28.0, 0.3)
