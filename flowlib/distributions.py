r"""Distributions that are known exactly: Gaussian mixtures, finite data sets as atoms, and the standard normal.

They are the yardstick of the book: a Gaussian path started from any of them has a closed-form velocity, score and
density (`flowlib.fields.MixtureField`).
"""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowlib._checks import check_positive, check_same, check_state

__all__ = ["Empirical", "GaussianMixture", "Normal"]


class GaussianMixture:
    r"""A mixture $\sum_k w_k\,\mathcal N(\mu_k, \Sigma_k)$ in $d$ dimensions.

    Covariances are kept by their eigenvalues (`eigenvalues`, `[K, d]`, or `[K, 1]` if isotropic) and, where they
    are full matrices, eigenvectors (`eigenvectors`, `[K, d, d]`, in columns; `None` otherwise).

    Args:
        means: $\mu_k$, `[K, d]`, floating point.
        covariances: A variance for all components (a number); variances `[K]` (isotropic); variances `[K, d]`
            (diagonal); or matrices `[K, d, d]` (full). Positive definite.
        weights: $w_k$, `[K]`, positive, summing to one; equal if `None`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes disagree, a covariance is not symmetric positive definite, or weights do not sum to 1.

    Example:
        >>> import torch
        >>> mixture = GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.25)
        >>> mixture.mean, mixture.covariance
        (tensor([0.]), tensor([[4.2500]]))
    """

    def __init__(self, means: Tensor, covariances: float | Tensor, weights: Tensor | None = None) -> None:
        check_state("means", means)
        if means.ndim != 2:
            raise ValueError(f"means must have shape [K, d], got {list(means.shape)}")
        count, dim = means.shape
        self.means = means
        self.weights = _checked_weights(weights, count, means)
        self.eigenvalues, self.eigenvectors = _spectrum(covariances, means)
        self._log_weights = self.weights.log()
        self.dim = dim

    @property
    def components(self) -> int:
        """The number $K$ of components."""
        return self.means.shape[0]

    @property
    def covariances(self) -> Float[Tensor, "K d d"]:
        r"""The matrices $\Sigma_k$."""
        values = self.eigenvalues.expand(self.means.shape)
        if self.eigenvectors is None:
            return torch.diag_embed(values)
        return self.eigenvectors @ torch.diag_embed(values) @ self.eigenvectors.mT

    @property
    def mean(self) -> Float[Tensor, " d"]:
        r"""$\sum_k w_k \mu_k$."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        r"""$\sum_k w_k (\Sigma_k + (\mu_k - \bar\mu)(\mu_k - \bar\mu)^\top)$."""
        centred = self.means - self.mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Draw `n` points.

        Args:
            n: Number of points, positive.
            generator: Random generator on the mixture's device; the global one if `None`.

        Returns:
            Points `[n, d]`.
        """
        return self.sample_with_labels(n, generator=generator)[0]

    def sample_with_labels(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Draw `n` points and the component each came from.

        Example:
            >>> import torch
            >>> x, k = GaussianMixture(torch.zeros(3, 2), 1.0).sample_with_labels(5)
            >>> x.shape, k.shape
            (torch.Size([5, 2]), torch.Size([5]))
        """
        check_positive("n", n, integer=True)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn((n, self.dim), generator=generator, dtype=self.means.dtype, device=self.means.device)
        z = z * self.eigenvalues[k].sqrt()
        if self.eigenvectors is not None:
            z = torch.einsum("nij,nj->ni", self.eigenvectors[k], z)
        return self.means[k] + z, k

    def log_prob(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Log-density in nats.

        Args:
            x: Points `[n, d]`, dtype and device of the means.

        Returns:
            Log-densities `[n]`.

        Raises:
            TypeError: If the dtype differs from that of the means.
            ValueError: If the shape or device is wrong or an entry is not finite.

        Example:
            >>> import torch
            >>> GaussianMixture(torch.zeros(1, 2), 1.0).log_prob(torch.zeros(1, 2))
            tensor([-1.8379])
        """
        check_state("x", x, dim=self.dim)
        check_same("x", x, "the mixture's means", self.means, shape=False)
        z = x[:, None] - self.means  # [n, K, d]
        if self.eigenvectors is not None:
            z = torch.einsum("nkd,kde->nke", z, self.eigenvectors)
        return torch.logsumexp(self._log_weights + normal_log_density(z, self.eigenvalues), 1)

    def condition(self, A: Float[Tensor, "m d"], y: Float[Tensor, " m"], noise_std: float) -> "GaussianMixture":
        r"""The law of $x$ given $y = Ax + \varepsilon$, $\varepsilon \sim \mathcal N(0, \rho^2 I)$: again a mixture.

        With $S_k = A\Sigma_kA^\top + \rho^2I$ and the gain $K_k = \Sigma_kA^\top S_k^{-1}$, component $k$ has the mean
        $\mu_k + K_k(y - A\mu_k)$, the covariance $(I - K_kA)\Sigma_k$ and a weight proportional to
        $w_k\,\mathcal N(y; A\mu_k, S_k)$. Conditioning on coordinates is the case where $A$ holds rows of the identity.

        Args:
            A: The measurement's matrix, `[m, d]`.
            y: What was measured, `[m]`.
            noise_std: $\rho$, positive.

        Returns:
            The posterior, with full covariances.

        Raises:
            TypeError: If dtypes differ.
            ValueError: If shapes or devices disagree, an entry is not finite, or `noise_std` is not positive.

        Example:
            >>> import torch
            >>> prior = GaussianMixture(torch.zeros(1, 2), 1.0)
            >>> posterior = prior.condition(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), noise_std=1.0)
            >>> bool(torch.allclose(posterior.mean, torch.tensor([1.0, 0.0])))
            True
        """
        check_state("A", A, dim=self.dim)
        check_same("A", A, "the mixture's means", self.means, shape=False)
        check_state("y", y[None] if y.ndim == 1 else y, dim=A.shape[0])
        check_same("y", y, "A", A[:, 0])
        check_positive("noise_std", noise_std)
        cross = self.covariances @ A.mT  # [K, d, m]
        noise = noise_std**2 * torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        root = torch.linalg.cholesky(A @ cross + noise)
        gain = torch.cholesky_solve(cross.mT, root).mT
        offset = y - self.means @ A.mT  # [K, m]
        left = torch.eye(self.dim, dtype=A.dtype, device=A.device) - gain @ A
        # Joseph's form of (I - KA) Sigma stays positive definite in floating point
        covariances = left @ self.covariances @ left.mT + noise_std**2 * gain @ gain.mT
        white = torch.linalg.solve_triangular(root, offset[..., None], upper=False)[..., 0]
        log_evidence = -0.5 * white.square().sum(1) - root.diagonal(dim1=1, dim2=2).log().sum(1)
        weights = torch.softmax(self._log_weights + log_evidence, 0)
        weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)  # far components underflow to zero
        return GaussianMixture(self.means + torch.einsum("kdm,km->kd", gain, offset), covariances, weights)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "GaussianMixture":
        """A copy on another device or of another floating-point type."""
        covariances = self.covariances if self.eigenvectors is not None else self.eigenvalues
        if self.eigenvectors is None and covariances.shape[1] == 1 and self.dim > 1:
            covariances = covariances[:, 0]
        return GaussianMixture(
            self.means.to(device, dtype), covariances.to(device, dtype), self.weights.to(device, dtype)
        )

    def __repr__(self) -> str:
        kind = "full" if self.eigenvectors is not None else "diagonal"
        if self.eigenvectors is None and self.eigenvalues.shape[1] == 1:
            kind = "isotropic"
        return f"GaussianMixture(components={self.components}, dim={self.dim}, covariances={kind})"


class Empirical:
    r"""A finite data set as a distribution: atoms with equal or given weights.

    Its exact field (`flowlib.fields.MixtureField`) is the one an unlimited network would learn from this training
    set, and its flow ends on the atoms.

    Args:
        atoms: The data `[N, *event]`, floating point.
        weights: Probabilities `[N]`, positive, summing to one; equal if `None`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes disagree, there is no atom, or weights do not sum to 1.

    Example:
        >>> import torch
        >>> Empirical(torch.arange(6.0).reshape(3, 2)).sample(4).shape
        torch.Size([4, 2])
    """

    def __init__(self, atoms: Tensor, weights: Tensor | None = None) -> None:
        check_state("atoms", atoms)
        self.atoms = atoms
        self.weights = _checked_weights(weights, atoms.shape[0], atoms)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *event"]:
        """Draw `n` atoms with replacement; returns `[n, *event]`."""
        check_positive("n", n, integer=True)
        return self.atoms[torch.multinomial(self.weights, n, replacement=True, generator=generator)]

    def __repr__(self) -> str:
        return f"Empirical(atoms={self.atoms.shape[0]}, event={tuple(self.atoms.shape[1:])})"


class Normal:
    r"""The isotropic normal $\mathcal N(0, \text{std}^2 I)$ on states of a given shape: the usual source.

    Args:
        event_shape: Shape of one state; an integer means a vector.
        std: Standard deviation, positive.
        dtype: Floating-point type of the samples; torch's default if `None`.
        device: Device of the samples; torch's default if `None`.

    Raises:
        ValueError: If `std` or a size is not positive.

    Example:
        >>> import torch
        >>> Normal((1, 8, 8)).sample(3).shape
        torch.Size([3, 1, 8, 8])
        >>> Normal(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        std: float = 1.0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if not shape or any(size < 1 for size in shape):
            raise ValueError(f"event_shape must hold positive sizes, got {event_shape}")
        check_positive("std", std)
        self.event_shape = shape
        self.std = std
        self.dtype = dtype
        self.device = device

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n *event"]:
        """Draw `n` states `[n, *event]`."""
        check_positive("n", n, integer=True)
        z = torch.randn((n, *self.event_shape), generator=generator, dtype=self.dtype, device=self.device)
        return self.std * z

    def log_prob(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """Log-density in nats of states `[n, *event]`; returns `[n]`.

        Raises:
            ValueError: If the event shape differs.
        """
        check_state("x", x)
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x must have event shape {list(self.event_shape)}, got {list(x.shape[1:])}")
        variance = torch.full((1,), self.std**2, dtype=x.dtype, device=x.device)
        return normal_log_density(x.flatten(1), variance)

    def __repr__(self) -> str:
        return f"Normal(event_shape={self.event_shape}, std={self.std:g})"


def normal_log_density(z: Tensor, variances: Tensor) -> Tensor:
    r"""$\log\mathcal N(z; 0, \operatorname{diag}(\text{variances}))$ over the last axis.

    Args:
        z: Centred points `[..., d]`, in the axes of the covariance.
        variances: Broadcastable against `z`; a last axis of size one means isotropic.

    Returns:
        Log-densities `[...]`.

    Example:
        >>> import torch
        >>> normal_log_density(torch.zeros(2), torch.ones(1))
        tensor(-1.8379)
    """
    dim = z.shape[-1]
    if variances.shape[-1] == dim:
        squares, log_det = short_sum(z.square() / variances), variances.log().sum(-1)
    else:
        squares, log_det = short_sum(z.square()) / variances[..., 0], dim * variances.log()[..., 0]
    return -0.5 * (squares + log_det + dim * math.log(2 * math.pi))


def short_sum(x: Tensor) -> Tensor:
    """The sum over the last axis; an axis of a few entries is added slice by slice, several times faster.

    Example:
        >>> import torch
        >>> short_sum(torch.ones(3, 2))
        tensor([2., 2., 2.])
    """
    return x.sum(-1) if x.shape[-1] > _SHORT else functools.reduce(torch.add, x.unbind(-1))


def short_softmax(x: Tensor) -> Tensor:
    """The softmax over the last axis; torch's own takes row by row, which is slow where rows are short.

    Example:
        >>> import torch
        >>> short_softmax(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    if x.shape[-1] > 4 * _SHORT:
        return torch.softmax(x, -1)
    powers = (x - x.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


# an axis of at most this many entries is short: torch's reductions over it cost more than one operation an entry
_SHORT = 4


def _checked_weights(weights: Tensor | None, count: int, like: Tensor) -> Tensor:
    if weights is None:
        return torch.full((count,), 1 / count, dtype=like.dtype, device=like.device)
    if not isinstance(weights, Tensor) or weights.dtype != like.dtype:
        raise TypeError(f"weights must be a tensor of dtype {like.dtype}")
    if weights.shape != (count,):
        raise ValueError(f"weights must have shape [{count}], got {list(weights.shape)}")
    if weights.device != like.device:
        raise ValueError(f"weights must be on {like.device}, got {weights.device}")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-5:
        raise ValueError(f"weights must be positive and sum to 1, got sum {float(weights.sum()):.6g}")
    return weights


def _spectrum(covariances: float | Tensor, means: Tensor) -> tuple[Tensor, Tensor | None]:
    count, dim = means.shape
    if not isinstance(covariances, Tensor):
        check_positive("covariances", covariances)
        return torch.full((count, 1), float(covariances), dtype=means.dtype, device=means.device), None
    if covariances.dtype != means.dtype or covariances.device != means.device:
        raise TypeError(
            f"covariances must have the dtype and device of the means, {means.dtype} on {means.device}; "
            f"got {covariances.dtype} on {covariances.device}"
        )
    eigenvectors = None
    if covariances.shape == (count,):
        values = covariances[:, None]
    elif covariances.shape == (count, dim):
        values = covariances
    elif covariances.shape == (count, dim, dim):
        if not torch.allclose(covariances, covariances.mT, rtol=1e-4, atol=1e-6):
            raise ValueError("covariances must be symmetric matrices")
        values, eigenvectors = torch.linalg.eigh(covariances)
    else:
        raise ValueError(
            f"covariances must be a number or of shape [{count}], [{count}, {dim}] or [{count}, {dim}, {dim}]; "
            f"got {list(covariances.shape)}"
        )
    if not bool((values > 0).all()):
        raise ValueError(f"covariances must be positive definite, got a smallest eigenvalue {values.min():.3g}")
    return values, eigenvectors
