"""Multi-head self-attention, used by the U-Net's coarse level and by the transformers."""

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["SelfAttention"]


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens `[batch, tokens, width]`.

    Args:
        width: Size of a token, a multiple of `heads`.
        heads: Number of heads.

    Raises:
        ValueError: If `heads` does not divide `width`.

    Example:
        >>> import torch
        >>> SelfAttention(16, 4)(torch.zeros(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} and {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; returns the shape of `x`."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, W/H)
        h = scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(h.transpose(1, 2).reshape(batch, tokens, width))
        return out
