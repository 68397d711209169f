r"""Linear measurements $y = Ax$ of an image, with what inverse problems need: adjoints, projections, proximal steps.

For each of the four operators a function of $AA^\top$ is cheap: it is a multiple of the identity, or diagonal in
Fourier space. Every exact solve follows from that, by $(wA^\top A + I)^{-1} w A^\top = A^\top (wAA^\top + I)^{-1} w$:

$$ \operatorname{pinv}(y) = A^\top (AA^\top)^+ y, \qquad
   \operatorname{project}(x, y) = x + A^\top (AA^\top)^+ (y - Ax), \qquad
   \operatorname{prox}(x, y) = x + A^\top (wAA^\top + I)^{-1} w\,(y - Ax) . $$
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowlib._checks import check_positive, check_state

__all__ = ["Measurement", "blur", "downsample", "mask", "radial_kspace"]

SpectralFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measurement:
    r"""A linear map of images, applied to a batch. Make one with `mask`, `blur`, `downsample` or `radial_kspace`.

    Measured values are real, but for k-space, where they are complex and $\langle y, y'\rangle$ means
    $\operatorname{Re}\sum \bar y\,y'$: the real inner product of real and imaginary parts.

    Args:
        event: Shape of one image.
        shape: Shape of one measurement.
        complex: Whether measured values are complex.
        forward: $A$, of `[batch, *event]`.
        transpose: $A^\top$, of `[batch, *shape]`.
        of_gram: $f(AA^\top)\,y$, of $f$ on eigenvalues (a tensor) and $y$.

    Example:
        >>> keep = torch.tensor([[True, False], [False, True]])
        >>> m = mask(keep)
        >>> m(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        tensor([[1., 4.]])
        >>> m.project(torch.zeros(1, 2, 2), torch.tensor([[5.0, 6.0]]))
        tensor([[[5., 0.],
                 [0., 6.]]])
    """

    event: tuple[int, ...]
    shape: tuple[int, ...]
    complex: bool
    forward: Callable[[Tensor], Tensor] = field(repr=False)
    transpose: Callable[[Tensor], Tensor] = field(repr=False)
    of_gram: Callable[[SpectralFunction, Tensor], Tensor] = field(repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        """Measure: $Ax$, `[batch, *shape]`.

        Raises:
            TypeError: If `x` is not floating point.
            ValueError: If `x` is not of shape `[batch, *event]`.
        """
        self._check_x(x)
        return self.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        r"""$A^\top y$, `[batch, *event]`: $\langle Ax, y\rangle = \langle x, A^\top y\rangle$ for all $x$ and $y$.

        Raises:
            TypeError: If `y` is complex where it should be real, or the other way.
            ValueError: If `y` is not of shape `[batch, *shape]`.
        """
        self._check_y(y)
        return self.transpose(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """The image of least norm among those that explain `y` best; raises as `adjoint` does."""
        self._check_y(y)
        return self.transpose(self.of_gram(_inverse, y))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        r"""The point nearest to `x` of $\{z : Az = y\}$ (if none explains $y$: of those that explain it best).

        With noise in $y$ and small singular values (`blur`) this amplifies the noise; use `prox` there.

        Args:
            x: Images `[batch, *event]`.
            y: Measurements `[batch, *shape]`, or `[1, *shape]` for all images.

        Raises:
            TypeError, ValueError: As `__call__` and `adjoint`.
        """
        return x + self.transpose(self.of_gram(_inverse, self._residual(x, y)))

    def prox(self, x: Tensor, y: Tensor, weight: float) -> Tensor:
        r"""$\arg\min_z \tfrac{w}{2}|Az - y|^2 + \tfrac12|z - x|^2$: the posterior mean of $z\sim N(x, I)$ measured
        with noise of variance $1/w$.

        Args:
            x: Images `[batch, *event]`.
            y: Measurements `[batch, *shape]`, or `[1, *shape]` for all images.
            weight: $w > 0$.

        Raises:
            TypeError, ValueError: As `__call__` and `adjoint`; also if `weight` is not positive and finite.
        """
        check_positive("weight", weight)
        if not math.isfinite(weight):
            raise ValueError("weight must be finite; the limit of a hard constraint is project")
        return x + self.transpose(self.of_gram(lambda s: weight / (weight * s + 1), self._residual(x, y)))

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        r"""$A$ as a real matrix `[m, d]` on flattened images, complex values as two real ones: for closed forms.

        Example:
            >>> downsample(2, (2, 2)).matrix()
            tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
        """
        size = math.prod(self.event)
        return self.flat(self.forward(torch.eye(size, dtype=dtype).reshape(size, *self.event))).mT.contiguous()

    def flat(self, y: Tensor) -> Tensor:
        """Measurements as real vectors `[batch, m]`, in the order of the rows of `matrix`."""
        return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)

    def _residual(self, x: Tensor, y: Tensor) -> Tensor:
        self._check_x(x)
        self._check_y(y)
        if y.shape[0] not in (1, x.shape[0]):
            raise ValueError(f"y must have one row or as many as x, {x.shape[0]}; got {y.shape[0]}")
        if (y.real if self.complex else y).dtype != x.dtype:
            raise TypeError(f"x and y must have matching dtypes, got {x.dtype} and {y.dtype}")
        return y - self.forward(x)

    def _check_x(self, x: Tensor) -> None:
        check_state("x", x)
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"x must have shape {['batch', *self.event]}, got {list(x.shape)}")

    def _check_y(self, y: Tensor) -> None:
        if y.is_complex() != self.complex or not (y.is_complex() or y.is_floating_point()):
            raise TypeError(f"y must be {'complex' if self.complex else 'real floating point'}, got {y.dtype}")
        if tuple(y.shape[1:]) != self.shape or y.ndim == 0:
            raise ValueError(f"y must have shape {['batch', *self.shape]}, got {list(y.shape)}")


def _inverse(eigenvalues: Tensor) -> Tensor:
    """The Moore-Penrose inverse of a spectrum: eigenvalues that are zero to rounding stay zero."""
    floor = eigenvalues.max() * eigenvalues.numel() * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > floor, 1 / eigenvalues.clamp(min=floor), 0)


def _constant(gram: float) -> Callable[[SpectralFunction, Tensor], Tensor]:
    """Functions of AA' = gram I."""
    return lambda f, y: f(torch.tensor(gram, dtype=torch.float64, device=y.device)).to(y.real.dtype) * y


def _image(event: Sequence[int]) -> tuple[int, ...]:
    event = tuple(event)
    if len(event) < 2 or any(not isinstance(n, int) or n < 1 for n in event):
        raise ValueError(f"event must be a shape [..., height, width], got {list(event)}")
    return event


def mask(keep: Tensor) -> Measurement:
    """See only some pixels (inpainting): `[batch, kept]`, in the order of the flattened image.

    Args:
        keep: Boolean, of the shape of one image; true where the pixel is seen.

    Raises:
        TypeError: If `keep` is not boolean.
        ValueError: If no pixel is kept.

    Example:
        >>> mask(torch.tensor([True, False, True]))(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 3.]])
    """
    if keep.dtype != torch.bool:
        raise TypeError(f"keep must be boolean, got {keep.dtype}")
    if not keep.any():
        raise ValueError("keep must be true for at least one pixel")
    event, index = tuple(keep.shape), keep.flatten().nonzero().flatten()

    def forward(x: Tensor) -> Tensor:
        return x.flatten(1)[:, index.to(x.device)]

    def transpose(y: Tensor) -> Tensor:
        out = y.new_zeros(y.shape[0], math.prod(event))
        return out.index_copy(1, index.to(y.device), y).reshape(-1, *event)

    return Measurement(event, (len(index),), False, forward, transpose, _constant(1.0))


def blur(kernel: Tensor, event: Sequence[int]) -> Measurement:
    r"""Convolve the last two axes with a kernel, periodic at the border: the same shape as the image.

    Diagonal in Fourier space: the eigenvalues of $AA^\top$ are $|\hat k|^2$. Frequencies with $\hat k = 0$ are lost.

    Args:
        kernel: `[height, width]`, no larger than the image; entry `[height // 2, width // 2]` is its centre.
        event: Shape of one image, `[..., height, width]`.

    Raises:
        ValueError: If the kernel is not a matrix that fits the image, not finite, or zero.

    Example:
        >>> m = blur(torch.tensor([[0.5, 0.5, 0.0]]), (1, 4))     # the mean with the right neighbour
        >>> m(torch.tensor([[[0.0, 8.0, 0.0, 0.0]]]))
        tensor([[[4., 4., 0., 0.]]])
    """
    event = _image(event)
    if kernel.ndim != 2 or not kernel.is_floating_point():
        raise ValueError(f"kernel must be a floating-point matrix, got {kernel.dtype} of shape {list(kernel.shape)}")
    if kernel.shape[0] > event[-2] or kernel.shape[1] > event[-1]:
        raise ValueError(f"kernel of shape {list(kernel.shape)} does not fit images {list(event[-2:])}")
    if not bool(torch.isfinite(kernel).all()) or not bool((kernel != 0).any()):
        raise ValueError("kernel must be finite and not all zero")
    whole = torch.zeros(event[-2:], dtype=torch.float64)
    whole[: kernel.shape[0], : kernel.shape[1]] = kernel.detach().double().cpu()
    whole = whole.roll((-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
    response = torch.fft.rfft2(whole)

    def multiplied(x: Tensor, by: Tensor) -> Tensor:
        factor = by.to(x.device, torch.promote_types(x.dtype, torch.complex64) if by.is_complex() else x.dtype)
        out: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * factor, s=event[-2:])
        return out

    return Measurement(
        event,
        event,
        False,
        lambda x: multiplied(x, response),
        lambda y: multiplied(y, response.conj()),
        lambda f, y: multiplied(y, f(response.abs().square())),
    )


def downsample(factor: int, event: Sequence[int]) -> Measurement:
    r"""Average blocks of `factor` by `factor` pixels (super-resolution); $AA^\top = I/f^2$.

    Args:
        factor: Side of a block; it divides height and width.
        event: Shape of one image, `[..., height, width]`.

    Raises:
        TypeError: If `factor` is not an int.
        ValueError: If it is not positive or does not divide the image.

    Example:
        >>> downsample(2, (2, 4))(torch.arange(8.0).reshape(1, 2, 4))
        tensor([[[2.5000, 4.5000]]])
    """
    check_positive("factor", factor, integer=True)
    event = _image(event)
    if event[-2] % factor or event[-1] % factor:
        raise ValueError(f"factor must divide the image, got {factor} for {list(event[-2:])}")
    shape = (*event[:-2], event[-2] // factor, event[-1] // factor)

    def forward(x: Tensor) -> Tensor:
        return x.reshape(-1, *event[:-2], shape[-2], factor, shape[-1], factor).mean((-1, -3))

    def transpose(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, -1).repeat_interleave(factor, -2) / factor**2

    return Measurement(event, shape, False, forward, transpose, _constant(1 / factor**2))


def radial_kspace(lines: int, event: Sequence[int]) -> Measurement:
    r"""See the discrete Fourier transform of a real image on lines through the centre, as in magnetic resonance.

    The transform is unitary (`norm="ortho"`) and the set of frequencies is symmetric, so that $A^\top A$ is a
    projection within real images and $A^\top$ the pseudo-inverse. Values are complex, `[batch, ..., frequencies]`.

    Args:
        lines: Number of lines, at equal angles from 0.
        event: Shape of one image, `[..., height, width]`.

    Raises:
        TypeError: If `lines` is not an int.
        ValueError: If it is not positive.

    Example:
        >>> m = radial_kspace(1, (4, 4))          # the horizontal frequencies: the sums of columns
        >>> m(torch.ones(1, 4, 4)).real.round(decimals=4)
        tensor([[4., 0., 0., 0.]])
    """
    check_positive("lines", lines, integer=True)
    event = _image(event)
    height, width = event[-2:]
    radius = torch.linspace(-0.5, 0.5, 4 * max(height, width) + 1, dtype=torch.float64)  # in cycles a pixel
    angle = torch.arange(lines, dtype=torch.float64)[:, None] * (math.pi / lines)
    seen = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = ((radius * angle.sin()) * height).round().long(), ((radius * angle.cos()) * width).round().long()
    seen[rows % height, columns % width] = True
    seen[-rows % height, -columns % width] = True
    index = seen.flatten().nonzero().flatten()

    def forward(x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fft2(x, norm="ortho")
        return spectrum.flatten(-2)[..., index.to(x.device)]

    def transpose(y: Tensor) -> Tensor:
        spectrum = y.new_zeros(*y.shape[:-1], height * width)
        spectrum = spectrum.index_copy(-1, index.to(y.device), y).reshape(-1, *event)
        image: Tensor = torch.fft.ifft2(spectrum, norm="ortho").real
        return image

    return Measurement(event, (*event[:-2], len(index)), True, forward, transpose, _constant(1.0))
