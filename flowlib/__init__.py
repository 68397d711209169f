"""flowlib: the library under *A textbook that runs*.

Submodules load when first used, so that `import flowlib` costs next to nothing:

>>> from flowlib import paths
>>> paths.linear().schedule
Linear()
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "kernels",
    "nets",
    "distributions",
    "data",
    "paths",
    "fields",
    "couplings",
    "objectives",
    "solvers",
    "control",
    "training",
    "metrics",
    "plots",
    "claims",
    "recipes",
)

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
