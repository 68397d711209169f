"""Training: a plain loop, a moving average of weights, and checkpoints that resume bit for bit."""

from flowlib.training import checkpoint
from flowlib.training.ema import EMA
from flowlib.training.loop import History, fit

__all__ = ["EMA", "History", "checkpoint", "fit"]
