"""The exact field of one Gaussian, of any rank, and its flow map in closed form."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowlib._checks import batch_time, check_choice, check_same, check_state, check_unit_interval
from flowlib.fields.base import Field, StateFunction
from flowlib.fields.mixture import posterior_gains
from flowlib.paths import PREDICTIONS, GaussianPath, Prediction

__all__ = ["GaussianField"]


class GaussianField(Field):
    r"""The exact field of $x_1 \sim \mathcal N(\mu, \Sigma)$, with its flow map in closed form.

    $\Sigma = \sum_k \lambda_k u_k u_k^\top + \rho\,(I - UU^\top)$: $r \le d$ *modes* $u_k$ with variances $\lambda_k$,
    and a residual variance $\rho$ in every other direction, zero for a covariance of low rank. With the deviations
    $g_k(t) = \sqrt{\alpha_t^2\lambda_k + \sigma_t^2}$ the coordinate $y_k = u_k^\top(x - \alpha_t\mu)$ obeys

    $$ v_k = \frac{\dot g_k}{g_k} y_k, \qquad y_k(t) = \frac{g_k(t)}{g_k(s)}\,y_k(s), \qquad
       \hat x_1 = \mu + \sum_k \frac{\alpha\lambda_k}{g_k^2}\,y_k u_k $$

    (Wang and Vastola, 2023). States may have any shape; the modes are those of the flattened state. Where the
    covariance is singular, velocity, score and noise have no limit as $\sigma \to 0$; the data prediction has one.
    For several components, or one with a full covariance and no need of the flow map, see `MixtureField`.

    Args:
        mean: $\mu$, `[*event]`.
        path: The path; its centre, if any, must be a number or have the shape of the mean.
        eigenvalues: $\lambda_k \ge 0$, `[r]`; no modes if `None`.
        eigenvectors: $u_k$ in orthonormal columns, `[d, r]`; no modes if `None`.
        residual: $\rho \ge 0$. `GaussianField(mean, path, residual=v)` is isotropic.

    Raises:
        TypeError: If dtypes differ.
        ValueError: If shapes disagree, a variance is negative, or the columns are not orthonormal.

    Example:
        >>> from flowlib import paths
        >>> field = GaussianField(torch.zeros(2), paths.linear(), torch.tensor([4.0]), torch.tensor([[1.0], [0.0]]))
        >>> field.flow(torch.ones(1, 2), 0.0, 1.0)      # stretched by sqrt(4) along the mode, flattened across it
        tensor([[2., 0.]])
    """

    def __init__(
        self,
        mean: Tensor,
        path: GaussianPath,
        eigenvalues: Tensor | None = None,
        eigenvectors: Tensor | None = None,
        residual: float = 0.0,
    ) -> None:
        check_state("mean", mean[None] if isinstance(mean, Tensor) else mean)
        dim = mean.numel()
        if (eigenvalues is None) != (eigenvectors is None):
            raise ValueError("give both eigenvalues and eigenvectors, or neither")
        values = mean.new_zeros(0) if eigenvalues is None else eigenvalues
        vectors = mean.new_zeros(dim, 0) if eigenvectors is None else eigenvectors
        if values.ndim != 1 or values.shape[0] > dim or vectors.shape != (dim, values.shape[0]):
            raise ValueError(
                f"eigenvalues and eigenvectors must have shapes [r] and [{dim}, r] with r <= {dim}, "
                f"got {list(values.shape)} and {list(vectors.shape)}"
            )
        check_same("eigenvalues", values, "mean", mean.flatten()[: values.shape[0]])
        check_same("eigenvectors", vectors, "mean", mean.flatten()[:, None].expand(vectors.shape))
        if not bool((values >= 0).all()) or not residual >= 0:
            raise ValueError(f"variances must not be negative, got {values.tolist()} and residual={residual}")
        gram = vectors.mT @ vectors - torch.eye(values.shape[0], dtype=mean.dtype, device=mean.device)
        if gram.numel() and not float(gram.abs().max()) < 1e-4:
            raise ValueError(f"eigenvectors must have orthonormal columns, off by {float(gram.abs().max()):.2g}")
        center = torch.as_tensor(path.center, dtype=mean.dtype, device=mean.device)
        if center.ndim and center.shape != mean.shape:
            raise ValueError(
                f"the path's center must be a number or of shape {list(mean.shape)}, got {list(center.shape)}"
            )
        self.mean, self.path, self.predicts = mean, path, "velocity"
        self.eigenvalues, self.eigenvectors, self.residual = values, vectors, float(residual)
        self._center = center.flatten() if center.ndim else center
        # one variance for each mode, and a last one for the rest of the space if there is a rest
        rest = values.new_full((0 if values.shape[0] == dim else 1,), self.residual)
        self._variances = torch.cat([values, rest])

    @classmethod
    def fit(cls, x: Float[Tensor, "n *event"], path: GaussianPath, *, rank: int | None = None) -> "GaussianField":
        r"""The Gaussian with the mean and the covariance of a data set (divided by $n$, not $n - 1$).

        Args:
            x: Data, at least two points; the statistics are computed in float64.
            path: The path.
            rank: Number of modes to keep, the largest; all that exceed round-off if `None`.

        Returns:
            The field, in the dtype of `x`, eigenvalues in decreasing order.

        Raises:
            ValueError: If there is only one point, or `rank` is not in 1 ... d.

        Example:
            >>> from flowlib import paths
            >>> x = torch.tensor([[0.0, 1.0], [4.0, 1.0]])
            >>> GaussianField.fit(x, paths.linear())
            GaussianField(event=(2,), modes=1, largest eigenvalue 4, residual 0)
        """
        check_state("x", x)
        if x.shape[0] < 2:
            raise ValueError("x must hold at least two points, got 1")
        flat = x.flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(flat.mT, correction=0).reshape(flat.shape[1], -1))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        if rank is None:
            floor = values[0] * flat.shape[1] * torch.finfo(values.dtype).eps
            rank = int((values > floor).sum())
        elif not 1 <= rank <= flat.shape[1]:
            raise ValueError(f"rank must lie in 1 ... {flat.shape[1]}, got {rank}")
        mean = flat.mean(0).reshape(x.shape[1:])
        return cls(mean.to(x), path, values[:rank].to(x), vectors[:, :rank].contiguous().to(x))

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        r"""$\Sigma$."""
        return self._matrix(self._variances)

    def deviations(self, t: float | Tensor) -> Tensor:
        r"""$g_k(t) = \sqrt{\alpha_t^2\lambda_k + \sigma_t^2}$, the standard deviation of $x_t$ along each mode.

        Args:
            t: Times in [0, 1], any shape.

        Returns:
            Deviations `[*t.shape, r]`.

        Raises:
            ValueError: If a time leaves [0, 1].
        """
        return self._deviations(self._times("t", t))[..., : self.eigenvalues.shape[0]]

    def emergence_times(self) -> Float[Tensor, " r"]:
        r"""When each mode appears: $t_k$ with $\alpha^2/\sigma^2 = 1/\lambda_k$.

        There the data prediction of the mode has grown to $1/\sqrt2$ of its final value. A mode that is wider or
        narrower than all the noise of a variance-exploding path gets a time outside [0, 1].

        Returns:
            Times `[r]`, increasing for decreasing eigenvalues; on the linear path $1/(1 + \sqrt{\lambda_k})$.
        """
        return self.path.schedule.time_of_log_snr(-self.eigenvalues.log())

    def flow(self, x: Float[Tensor, "batch *event"], s: float | Tensor, t: float | Tensor) -> Tensor:
        r"""The flow map: where the probability-flow ODE takes states from time $s$ to time $t$.

        Args:
            x: States at time `s`.
            s: A time in [0, 1], a float or a 0-d tensor.
            t: The time wanted, before or after `s`; or several, `[T]`.

        Returns:
            States `[batch, *event]`, or `[T, batch, *event]` for several times.

        Raises:
            TypeError: If dtypes differ.
            ValueError: If shapes or times are wrong, or $\sigma_s = 0$ while the covariance is singular: the noise
                off the data's plane is lost there.

        Example:
            >>> from flowlib import paths
            >>> field = GaussianField(torch.ones(1), paths.linear(), residual=4.0)
            >>> field.flow(torch.ones(1, 1), 0.0, torch.tensor([0.0, 1.0]))[..., 0]
            tensor([[1.],
                    [3.]])
        """
        self._check_states(x)
        start, stop, factors = self._factors(s, t)
        y = x.flatten(1) - self._center
        m = self.mean.flatten() - self._center
        schedule = self.path.schedule
        moved = self._apply(factors[..., None, :], y - schedule.alpha(start) * m)
        out = moved + schedule.alpha(stop)[..., None, None] * m + self._center
        return out.reshape(stop.shape + x.shape)

    def propagator(self, s: float | Tensor, t: float | Tensor) -> Tensor:
        r"""The Jacobian of the flow map, $\sum_k \frac{g_k(t)}{g_k(s)} u_k u_k^\top$; the same at every state.

        A perturbation $\delta$ at time $s$ has become `propagator(s, t)` times $\delta$ at time $t$.

        Args:
            s: A time in [0, 1], a float or a 0-d tensor.
            t: The later (or earlier) time; or several, `[T]`.

        Returns:
            Symmetric matrices `[d, d]`, or `[T, d, d]`.

        Raises:
            ValueError: As `flow`.
        """
        return self._matrix(self._factors(s, t)[2])

    def evaluate(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self._predict("velocity", x, t)

    def function(self, kind: Prediction) -> StateFunction:
        """The closed form of `kind`; see `Field.function`."""
        check_choice("kind", kind, PREDICTIONS)

        def closed_form(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            return self._predict(kind, x, t)

        return closed_form

    def check_times(self, kind: Prediction, times: Tensor) -> None:
        """Check that the closed form exists at `times`: always, but where a direction has neither data nor noise."""
        check_choice("kind", kind, PREDICTIONS)
        check_unit_interval("times", times)
        if kind != "data" and self._singular and bool((self.path.schedule.sigma(times) == 0).any()):
            raise ValueError(f"the {kind} of a singular Gaussian has no limit where sigma = 0; keep t below 1")

    def __repr__(self) -> str:
        largest = f"largest eigenvalue {float(self.eigenvalues.max()):.3g}, " if self.eigenvalues.numel() else ""
        return (
            f"GaussianField(event={tuple(self.mean.shape)}, modes={self.eigenvalues.numel()}, "
            f"{largest}residual {self.residual:.3g})"
        )

    @property
    def _singular(self) -> bool:
        return float(self._variances.min()) == 0.0

    def _checked(self, kind: Prediction, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> Tensor:
        self._check_states(x)
        t = batch_time(t, x)
        self.check_times(kind, t)
        return self._predict(kind, x, t)

    def _check_states(self, x: Tensor) -> None:
        check_state("x", x)
        check_same("x", x, "the mean", self.mean[None], shape=False)

    def _predict(self, kind: Prediction, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1)  # [B or 1, 1] against [r]
        alpha = self.path.schedule.alpha(t)
        m = self.mean.flatten() - self._center
        spectrum = alpha**2 * self._variances + self.path.schedule.sigma(t) ** 2
        mean_factor, gains = posterior_gains(kind, self.path.schedule, t, self._variances, spectrum)
        if kind == "data":
            gains = torch.where(spectrum > 0, gains, 0.0)  # no data off the plane, also where sigma = 0
        out = mean_factor * m + self._apply(gains, x.flatten(1) - self._center - alpha * m)
        return (out + self._center if kind == "data" else out).reshape(x.shape)

    def _apply(self, factors: Tensor, y: Tensor) -> Tensor:
        """Multiply each mode of `y` `[B, d]`, and what is orthogonal to all modes, by its factor `[..., r or r+1]`."""
        r = self.eigenvalues.shape[0]
        modes = factors[..., :r]
        if r == y.shape[1]:
            return (modes * (y @ self.eigenvectors)) @ self.eigenvectors.mT
        rest = factors[..., r:]
        return rest * y + ((modes - rest) * (y @ self.eigenvectors)) @ self.eigenvectors.mT

    def _matrix(self, factors: Tensor) -> Tensor:
        """The symmetric matrix with these factors along the modes."""
        identity = torch.eye(self.mean.numel(), dtype=self.mean.dtype, device=self.mean.device)
        return self._apply(factors[..., None, :], identity)

    def _times(self, name: str, t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=self.mean.dtype, device=self.mean.device)
        check_unit_interval(name, t)
        return t

    def _deviations(self, t: Tensor) -> Tensor:
        alpha, sigma = self.path.schedule.alpha(t)[..., None], self.path.schedule.sigma(t)[..., None]
        return torch.sqrt(alpha**2 * self._variances + sigma**2)

    def _factors(self, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start, stop = self._times("s", s), self._times("t", t)
        if start.ndim or stop.ndim > 1:
            raise ValueError(
                f"s must be one time and t one time or a vector, got shapes {list(start.shape)} and {list(stop.shape)}"
            )
        before = self._deviations(start)
        if not bool((before > 0).all()):
            raise ValueError(
                f"the flow of a singular Gaussian cannot start at s = {float(start):g}, where sigma = 0; keep s below 1"
            )
        return start, stop, self._deviations(stop) / before
