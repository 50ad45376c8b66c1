"""Names whose modules are imported when they are first used (PEP 562)."""

# Pythons that are too old read this file before installed.py says so
from __future__ import annotations

import importlib


def lazy_names(package: str, modules: dict[str, str]):
    """The (__getattr__, __dir__, __all__) of a package that imports nothing by itself.

    modules: public name -> the module below `package` that defines it. No name may be that of a module of
    the package: Python would bind the name to the module once that is imported.
    """

    def load(name):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    names = sorted(modules)
    return load, lambda: names, names
