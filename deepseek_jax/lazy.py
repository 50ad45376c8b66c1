"""A package's public names, whose modules are imported when the name is first asked for (PEP 562)."""

import importlib


def lazy_names(package, modules):
    """The (__getattr__, __dir__, __all__) of a package that imports nothing by itself.

    modules: public name -> the module below `package` that defines it. A name must not be that of a module
    of the package: once imported, the module would stand in its place.
    """

    def load(name):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    names = sorted(modules)
    return load, lambda: names, names
