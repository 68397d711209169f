"""The fused adaLN equals its definition, forward and backward."""

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, assert_agrees, random, strided
from torch import Tensor, nn

from flowlib.kernels import adaln_modulate
from flowlib.nets import DiTBlock


def operands(batch: int, tokens: int, width: int, dtype: torch.dtype, gated: bool = True) -> dict[str, Tensor]:
    named = {
        "x": random(batch, tokens, width, dtype=dtype),
        "shift": random(batch, 1, width, dtype=dtype, seed=1),
        "scale": random(batch, 1, width, dtype=dtype, seed=2),
    }
    if gated:
        named["gate"] = random(batch, 1, width, dtype=dtype, seed=3)
        named["branch"] = random(batch, tokens, width, dtype=dtype, seed=4)
    return named


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("batch", "tokens", "width"), [(2, 3, 48), (1, 1, 5), (1, 19, 33)])
def test_kernel_equals_reference(batch: int, tokens: int, width: int, gated: bool, dtype: torch.dtype) -> None:
    """Widths that are no power of two, tokens that do not fill the backward pass's parts."""
    assert_agrees(adaln_modulate, operands(batch, tokens, width, dtype, gated))


def test_strides_do_not_matter() -> None:
    views = {name: strided(x) for name, x in operands(2, 3, 20, torch.float32).items()}
    assert not views["x"].is_contiguous()
    assert_agrees(adaln_modulate, views)


@pytest.mark.parametrize("gated", [True, False])
def test_gradients_are_those_of_finite_differences(gated: bool) -> None:
    names = list(operands(1, 2, 3, torch.float64, gated))
    leaves = [x.requires_grad_() for x in operands(1, 2, 3, torch.float64, gated).values()]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return adaln_modulate(**dict(zip(names, tensors, strict=True)), implementation="triton")

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_two_calls_are_a_dit_block(implementation: str) -> None:
    """The block of `flowlib.nets`, rewritten with the fused function, gives the same tokens."""
    block = DiTBlock(16, 2).to(DEVICE)
    nn.init.normal_(block.modulation.weight, std=0.3)
    tokens, condition = random(2, 5, 16), random(2, 1, 16)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition).chunk(6, -1)
    x, y = adaln_modulate(tokens, shift1, scale1, implementation=implementation)
    x, y = adaln_modulate(x, shift2, scale2, gate1, block.attention(y), implementation=implementation)
    torch.testing.assert_close(x + gate2 * block.mlp(y), block(tokens, condition), atol=2e-5, rtol=1e-4)


def test_gradient_is_orthogonal_to_what_the_norm_forgets() -> None:
    """Adding a constant to a token, or scaling it, does not change y, so the gradient has no such part."""
    named = operands(1, 2, 32, torch.float64, gated=False)
    x = named["x"].requires_grad_()
    _, y = adaln_modulate(**named, eps=1e-30, implementation="triton")
    (y * random(1, 2, 32, dtype=torch.float64, seed=9)).sum().backward()
    assert x.grad is not None
    assert x.grad.sum(-1).abs().max() < 1e-12
    assert (x.grad * x.detach()).sum(-1).abs().max() < 1e-12


@pytest.mark.bad_input
def test_errors_name_the_argument() -> None:
    named = operands(2, 3, 8, torch.float32)
    with pytest.raises(ValueError, match="shift must have shape"):
        adaln_modulate(**named | {"shift": named["shift"][:, 0]})
    with pytest.raises(TypeError, match="scale must have the dtype"):
        adaln_modulate(**named | {"scale": named["scale"].double()})
    with pytest.raises(TypeError, match="x must be float32"):
        adaln_modulate(**named | {"x": named["x"].long()})
    with pytest.raises(ValueError, match="gate and branch"):
        adaln_modulate(**named | {"gate": None})
    with pytest.raises(ValueError, match="eps must be positive"):
        adaln_modulate(**named, eps=0.0)
    with pytest.raises(ValueError, match="implementation must be one of"):
        adaln_modulate(**named, implementation="cuda")
    with pytest.raises(ValueError, match="device"):
        adaln_modulate(**named | {"branch": named["branch"].to("meta")})
    with pytest.raises(ValueError, match="at most 8192"):
        adaln_modulate(**operands(1, 1, 8193, torch.float32))
