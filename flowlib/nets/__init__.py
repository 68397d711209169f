"""Networks: called as `net(x, t, y=None)` with states `[batch, *event]` and times 0-d or `[batch]`.

`y` holds class labels; `None`, or -1 for single samples, is the learned null condition.
"""

from flowlib.nets.attention import SelfAttention
from flowlib.nets.dit import DiT, DiTBlock
from flowlib.nets.embeddings import LabelEmbedding, TimeEmbedding
from flowlib.nets.mlp import MLP
from flowlib.nets.next_token import FlowHead, NextToken
from flowlib.nets.potential import PotentialMLP
from flowlib.nets.transformer import BlockTransformer, CausalBlock
from flowlib.nets.two_times import TwoTimeMLP, gaussian_average
from flowlib.nets.unet import UNet
from flowlib.nets.video_dit import VideoDiT

__all__ = [
    "MLP",
    "BlockTransformer",
    "CausalBlock",
    "DiT",
    "DiTBlock",
    "FlowHead",
    "LabelEmbedding",
    "NextToken",
    "PotentialMLP",
    "SelfAttention",
    "TimeEmbedding",
    "TwoTimeMLP",
    "UNet",
    "VideoDiT",
    "gaussian_average",
]
