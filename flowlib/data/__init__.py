"""Data: 2-D toys with known laws, scikit-learn's digits, Fashion-MNIST from a local folder.

Every source of data has `.sample(n, generator=...)`; labelled ones return `(x, {"y": labels})`, which is what
`flowlib.training.fit` takes as a target.
"""

from flowlib.data import digits, images, toys
from flowlib.data.labelled import Labelled

__all__ = ["Labelled", "digits", "images", "toys"]
