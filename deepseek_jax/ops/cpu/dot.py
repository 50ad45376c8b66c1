"""Products as XLA's CPU compiler multiplies them fast, on one device: several would gather their operands."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from deepseek_jax.ops.platform import precision_of

# The most rows of x that count as few: those of a batch that decodes
FEW = {"float32": 16, "bfloat16": 64}


def einsum(spec, left, right):
    """jnp.einsum of two operands of one dtype into float32; right may be an InputsLast.

    Axes that are adjacent in every operand that has them are merged into one: the compiler would copy a
    weight of more than two axes to transpose it.
    """
    if isinstance(right, InputsLast):
        return right.product(spec, left)
    terms = re.split(",|->", spec)
    runs = _runs(terms)
    sizes = dict(zip(terms[0] + terms[1], left.shape + right.shape, strict=True))

    def runs_of(term):
        return sorted((run for run in runs if run[0] in term), key=term.index)

    def merged(array, term):
        return array.reshape([math.prod(sizes[c] for c in run) for run in runs_of(term)])

    short = ["".join(run[0] for run in runs_of(term)) for term in terms]
    out = _product(*short, merged(left, terms[0]), merged(right, terms[1]))
    return out.reshape([sizes[c] for c in terms[2]])


def _runs(terms):
    """An einsum's letters in runs: every term has all of a run, in this order, or nothing of it."""
    runs = []
    for letter in dict.fromkeys(terms[0] + terms[1]):
        last = runs[-1][-1] if runs else None
        if runs and all(last + letter in t or not {last, letter} & set(t) for t in terms):
            runs[-1] += letter
        else:
            runs.append(letter)
    return runs


def _product(left, right, result, x, w):
    """einsum of x and w, by the letters of the two and of the result."""
    if _is_of_few_rows(left, right, result, x):
        # A tall matrix by 8 or 32 columns takes less time than as many rows by a wide one
        tall = right[0] + left[0]
        out = _float32(f"{right},{left}->{tall}", w, x)
        # Without the barrier the compiler would swap the operands back
        return jnp.einsum(f"{tall}->{result}", jax.lax.optimization_barrier(out))
    if x.dtype == jnp.bfloat16:
        # In bfloat16, the operand whose axes come first in the result needs contiguous rows: it goes left
        batch = [c for c in result if c in left and c in right]
        if result[len(batch)] in right:
            left, right, x, w = right, left, w, x
        left, x = _contracted_last(left, result, x)
    return _float32(f"{left},{right}->{result}", x, w)


def _is_of_few_rows(left, right, result, x):
    """Whether x is [m d] and w [v d], and m small."""
    is_matrices = len(left) == len(right) == len(result) == 2 and left[1] == right[1]
    return is_matrices and 1 < len(x) <= FEW.get(str(x.dtype), 0)


def _contracted_last(left, result, x):
    """x and its letters, transposed so that the contracted axes come last. The compiler multiplies in
    bfloat16 only where these rows are contiguous. Returns x itself where they are.
    """
    turned = "".join(sorted(left, key=lambda c: c not in result))
    if turned == left:
        return left, x
    x = jnp.einsum(f"{left}->{turned}", x)
    # Without the constraint the compiler would merge the transpose into the product again
    return turned, with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _float32(spec, left, right):
    return jnp.einsum(
        spec, left, right, precision=precision_of(left), preferred_element_type=jnp.float32
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputsLast:
    """A Linear layer's weight for decoding: array is [outputs... inputs...]; other products take it as
    [inputs... outputs...].
    """

    array: jax.Array

    @classmethod
    def of(cls, w, num_inputs):
        """From w, whose first num_inputs axes a product contracts."""
        return cls(jnp.moveaxis(w, range(num_inputs), range(-num_inputs, 0)))

    @property
    def ndim(self):
        """The number of axes, which `of` only moves."""
        return self.array.ndim

    def astype(self, dtype):
        """With its array in dtype."""
        return InputsLast(self.array.astype(dtype))

    def product(self, spec, x):
        """einsum by the spec for the weight as it was, whose contracted axes are x's last, in x's order."""
        left, right, _ = re.split(",|->", spec)
        num_inputs = len(set(left) & set(right))
        rows, outputs = x.shape[:-num_inputs], self.array.shape[:-num_inputs]
        inputs = math.prod(x.shape[-num_inputs:])
        out = einsum("md,vd->mv", x.reshape(-1, inputs), self.array.reshape(-1, inputs))
        return out.reshape(*rows, *outputs)
