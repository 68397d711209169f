"""The exact field of a Gaussian mixture or of a finite data set."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_same, check_state, check_unit_interval
from flowlib.distributions import Empirical, GaussianMixture, normal_log_density, short_softmax
from flowlib.fields.base import Field, StateFunction
from flowlib.paths import PREDICTIONS, GaussianPath, Prediction, Schedule

__all__ = ["MixtureField"]


class MixtureField(Field):
    r"""The exact field of a Gaussian mixture or of a finite data set, in closed form.

    With $x_1 \sim \sum_k w_k \mathcal N(\mu_k, \Sigma_k)$ and independent noise, $p_t$ is the mixture of
    $\mathcal N(\alpha\mu_k, C_k)$, $C_k = \alpha^2\Sigma_k + \sigma^2 I$. With responsibilities
    $r_k(x, t) \propto w_k \mathcal N(x; \alpha\mu_k, C_k)$ and $z_k = C_k^{-1}(x - \alpha\mu_k)$:

    $$ v = \sum_k r_k\big[\dot\alpha\mu_k + (\alpha\dot\alpha\Sigma_k + \sigma\dot\sigma I) z_k\big], \quad
       s = -\sum_k r_k z_k, \quad
       \hat x_1 = \sum_k r_k\big[\mu_k + \alpha\Sigma_k z_k\big], \quad
       \hat x_0 = \sigma\sum_k r_k z_k. $$

    All four are finite on the whole of $[0, 1]$ when the covariances are positive definite: no division by
    $\alpha$ or $\sigma$ takes place. For atoms ($\Sigma_k = 0$) they exist where $\sigma_t > 0$.

    Args:
        distribution: A `GaussianMixture` (states are vectors) or an `Empirical` (states of any shape).
        path: The path; a centre, if any, must be a number or have the shape of one state.

    Raises:
        TypeError: If `distribution` is of another kind.
        ValueError: If the path's centre has a batch of values.

    Example:
        >>> import torch
        >>> from flowlib import paths
        >>> from flowlib.distributions import GaussianMixture
        >>> field = MixtureField(GaussianMixture(torch.zeros(1, 2), 1.0), paths.linear())
        >>> field.velocity(torch.ones(1, 2), 0.5)      # N(0, I) to N(0, I): at rest half-way
        tensor([[0., 0.]])
    """

    def __init__(self, distribution: GaussianMixture | Empirical, path: GaussianPath) -> None:
        if isinstance(distribution, GaussianMixture):
            means = distribution.means
            self.event_shape: tuple[int, ...] = (distribution.dim,)
            self._variances, self._basis = distribution.eigenvalues, distribution.eigenvectors
        elif isinstance(distribution, Empirical):
            means = distribution.atoms.flatten(1)
            self.event_shape = tuple(distribution.atoms.shape[1:])
            self._variances, self._basis = means.new_zeros(means.shape[0], 1), None
        else:
            raise TypeError(
                f"distribution must be a GaussianMixture or an Empirical, got {type(distribution).__name__}"
            )
        center = torch.as_tensor(path.center, dtype=means.dtype, device=means.device)
        if center.ndim and tuple(center.shape) != self.event_shape:
            raise ValueError(
                f"the path's center must be a number or of shape {list(self.event_shape)}, got {list(center.shape)}"
            )
        self.distribution = distribution
        self.path = path
        self.predicts = "velocity"
        self._center = center.flatten() if center.ndim else center
        self._means = means - self._center
        self._log_weights = distribution.weights.log()

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self._predict("velocity", x, t)

    def function(self, kind: Prediction) -> StateFunction:
        """The closed form of `kind`; see `Field.function`."""
        check_choice("kind", kind, PREDICTIONS)

        def closed_form(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            return self._predict(kind, x, t)

        return closed_form

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Check that the closed form exists at `times`: always, except for atoms where sigma is zero."""
        check_choice("kind", kind, PREDICTIONS)
        check_unit_interval("times", times)
        degenerate = float(self._variances.min()) == 0.0
        if degenerate and bool((self.path.schedule.sigma(times) == 0).any()):
            raise ValueError(
                f"the {kind} of a finite data set has no limit where sigma = 0 (t = 1 on this path): the density is "
                "a sum of atoms there; keep t below 1"
            )

    def log_prob(self, x: Float[Tensor, "batch *event"], t: float | Tensor) -> Float[Tensor, " batch"]:
        """The exact log-density of the path's marginal at time `t`, in nats.

        Args:
            x: States.
            t: Time in [0, 1].

        Returns:
            $\\log p_t(x)$, `[batch]`.

        Raises:
            ValueError: If inputs are invalid, or the marginal has no density there (atoms at sigma = 0).
        """
        log_joint, _, _ = self._components(*self._checked_inputs("score", x, t))
        return torch.logsumexp(log_joint, 1)

    def responsibilities(self, x: Float[Tensor, "batch *event"], t: float | Tensor) -> Float[Tensor, "batch K"]:
        """The posterior probability of each component (or atom) given $x_t = x$; arguments as `log_prob`."""
        log_joint, _, _ = self._components(*self._checked_inputs("score", x, t))
        return short_softmax(log_joint)

    def sample(self, n: int, t: float, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` exact samples of the path's marginal at time `t`.

        Args:
            n: How many.
            t: Time in [0, 1].
            generator: Random generator; the global one if `None`.

        Returns:
            States `[n, *event]`.
        """
        x1 = self.distribution.sample(n, generator=generator)
        x0 = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
        return self.path.interpolate(x0, x1, t)

    def _checked(self, kind: Prediction, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> Tensor:
        return self._predict(kind, *self._checked_inputs(kind, x, t))

    def _checked_inputs(self, kind: Prediction, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        check_state("x", x)
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x must have event shape {list(self.event_shape)}, got {list(x.shape[1:])}")
        check_same("x", x.flatten(1), "the distribution", self._means, shape=False)
        t = batch_time(t, x)
        self.check_times(kind, t)
        return x, t

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log joint `[B, K]`, covariance spectra `[B or 1, K, d or 1]` and, if small, offsets `[B, K, d]`."""
        y = x.flatten(1) - self._center
        alpha, sigma = self.path.schedule.alpha(t).reshape(-1, 1, 1), self.path.schedule.sigma(t).reshape(-1, 1, 1)
        spectra = alpha**2 * self._variances + sigma**2
        if self._isotropic and y.shape[0] * self._means.numel() > _DENSE_ENTRIES:
            # |y|^2 - 2 alpha y.m + alpha^2 |m|^2 by one matrix product, without the [B, K, d] offsets
            a = alpha[..., 0]
            squares = y.square().sum(1, keepdim=True) - 2 * a * (y @ self._means.mT)
            squares = (squares + a**2 * self._means.square().sum(1)).clamp_min(0)
            variances = spectra[..., 0]
            log_normal = -0.5 * (squares / variances + y.shape[1] * (variances.log() + math.log(2 * math.pi)))
            return self._log_weights + log_normal, spectra, None
        offsets = y[:, None] - alpha * self._means
        if self._basis is not None:
            offsets = torch.einsum("bkd,kde->bke", offsets, self._basis)
        return self._log_weights + normal_log_density(offsets, spectra), spectra, offsets

    def _predict(self, kind: Prediction, x: Tensor, t: Tensor) -> Tensor:
        log_joint, spectra, offsets = self._components(x, t)
        weights = short_softmax(log_joint)
        mean_factor, gains = posterior_gains(kind, self.path.schedule, t.reshape(-1, 1, 1), self._variances, spectra)
        if offsets is None:
            # isotropic: sum_k r_k [f m_k + g_k (y - alpha m_k)], two matrix products
            alpha = self.path.schedule.alpha(t).reshape(-1, 1)
            weighted = weights * gains[..., 0]
            y = x.flatten(1) - self._center
            out = (mean_factor[..., 0] * weights - alpha * weighted) @ self._means
            out = out + weighted.sum(1, keepdim=True) * y
        else:
            moved = gains * offsets
            if self._basis is not None:
                moved = torch.einsum("bke,kde->bkd", moved, self._basis)
            out = torch.einsum("bk,bkd->bd", weights, mean_factor * self._means + moved)
        if kind == "data":
            out = out + self._center
        return out.reshape(x.shape)

    @property
    def _isotropic(self) -> bool:
        return self._basis is None and self._variances.shape[1] == 1


def posterior_gains(
    kind: Prediction, schedule: Schedule, t: Tensor, variances: Tensor, spectrum: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Factors f, g with `E[target | x] = f mu + g (x - alpha mu)` for a Gaussian, g along the covariance's axes.

    Args:
        kind: The prediction.
        schedule: The schedule.
        t: Times, with axes that broadcast against `variances`.
        variances: Eigenvalues of the covariance.
        spectrum: $\alpha^2\lambda + \sigma^2$, which every caller has at hand.

    Returns:
        The two factors; g is infinite or NaN where the spectrum vanishes.
    """
    alpha = schedule.alpha(t)
    if kind == "data":
        return torch.ones_like(alpha), alpha * variances / spectrum
    if kind == "score":
        return torch.zeros_like(alpha), -1 / spectrum
    if kind == "noise":
        return torch.zeros_like(alpha), schedule.sigma(t) / spectrum
    alpha_dot = schedule.alpha_dot(t)
    return alpha_dot, (alpha * alpha_dot * variances + schedule.variance_dot(t) / 2) / spectrum


# Above this many numbers the offsets [B, K, d] cost several times the matrix products; below it they are exact to
# rounding and cost nothing that matters.
_DENSE_ENTRIES = 200_000
