"""Data: 2-D toys with known laws, scikit-learn's digits, Fashion-MNIST from a local folder, clips of bouncing shapes,
and shards of large data sets.

Every source of data has `.sample(n, generator=...)`; labelled ones return `(x, {"y": labels})`, which is what
`flowlib.training.fit` takes as a target.
"""

from flowlib.data import clips, digits, images, shards, toys
from flowlib.data.labelled import Labelled

__all__ = ["Labelled", "clips", "digits", "images", "shards", "toys"]
