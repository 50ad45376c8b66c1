"""Lazy imports for packages: a module is imported when one of its names is first used (PEP 562).

Tests: tests/test_public_names.py.
"""

# A Python that is too old reads this file before installed.py says so
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy_names(
    package: str, modules: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return (__getattr__, __dir__, __all__) for a package that imports nothing by itself.

    Args:
        package: The package's dotted name.
        modules: {public name: the module below `package` that defines it}. No public name may equal
            the name of a module of the package: Python would bind the name to the module once that
            is imported.
    """

    def load(name):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    names = sorted(modules)
    return load, lambda: names, names
