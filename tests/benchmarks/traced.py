"""The dtypes of a function's products and arrays, from the program that JAX traces for it."""

import jax
import jax.numpy as jnp

PRODUCTS = ("dot_general", "ragged_dot", "ragged_dot_general")


def array(*sizes, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def equations(jaxpr):
    """Every equation of a jaxpr and of what it calls, kernels too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def traced(function, *arrays):
    return equations(jax.make_jaxpr(function)(*arrays).jaxpr)


def products(function, *arrays):
    """The products of a function: operands -> result."""
    return products_among(traced(function, *arrays))


def products_among(equations, width=None):
    """As products; width: only those whose result has this last axis."""
    found = {}
    for eqn in equations:
        if eqn.primitive.name in PRODUCTS:
            out = eqn.outvars[0].aval
            sides = dict.fromkeys(x.aval.dtype.name for x in eqn.invars[:2])
            exact = " (exact)" * ("HIGHEST" in str(eqn.params.get("precision")))
            if width in (None, *out.shape[-1:]):
                found[f"{' x '.join(sides)}{exact} → {out.dtype.name}"] = None
    return ", ".join(found)


def computed(primitive, function, *arrays):
    """The dtypes in which a function computes a primitive."""
    of = [e.outvars[0].aval for e in traced(function, *arrays) if e.primitive.name == primitive]
    return stored(of)


def stored(tree):
    """The dtypes of the floating arrays of a tree: that of most names, then the others with theirs."""
    names = {}
    for path, x in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            names.setdefault(x.dtype.name, set()).update(keys[-1:])
    # Most names first; those of the other dtypes stand beside them
    first, *others = sorted(names, key=lambda dtype: -len(names[dtype]))
    beside = [f"{dtype} ({', '.join(sorted(names[dtype]))})" for dtype in others if names[dtype]]
    return ", ".join([first, *(beside or others)])


def gradients(function):
    """The gradients of a function's sum in its first two arguments."""

    def pulled(*arrays):
        out, pull = jax.vjp(lambda *two: function(*two, *arrays[2:]), *arrays[:2])
        return pull(jnp.ones_like(out))

    return pulled
