"""Triton kernels for GPUs, each beside a plain-PyTorch reference and behind one function.

On the CPU, or without triton, the functions run their references. The kernels, in `flowlib/kernels/_triton/`, are
imported when first used.
"""

from flowlib.kernels.adaln import adaln_modulate
from flowlib.kernels.block_causal import (
    FrameCache,
    block_causal_attention,
    block_causal_mask,
    paged_attention,
    visible_pairs,
)
from flowlib.kernels.flow_pair import flow_matching_pair, philox, philox_normal
from flowlib.kernels.linear_attention import gated_linear_attention
from flowlib.kernels.scan import selective_scan
from flowlib.kernels.transport import sinkhorn

__all__ = [
    "FrameCache",
    "adaln_modulate",
    "block_causal_attention",
    "block_causal_mask",
    "flow_matching_pair",
    "gated_linear_attention",
    "paged_attention",
    "philox",
    "philox_normal",
    "selective_scan",
    "sinkhorn",
    "visible_pairs",
]
