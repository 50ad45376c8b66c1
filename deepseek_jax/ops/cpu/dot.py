"""Matrix products in the forms that XLA's CPU compiler multiplies fast, for one device.

With several devices, these forms would gather their operands.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from deepseek_jax.ops.platform import precision_of

# The most rows of x that count as few, as in a batch that decodes
FEW = {"float32": 16, "bfloat16": 64}


def einsum(spec, left, right):
    """Compute jnp.einsum of two operands of one dtype, into float32; right may be an InputsLast.

    Axes that are adjacent in every operand that has them are merged into one: the compiler would
    copy a weight of more than two axes to transpose it.
    """
    if isinstance(right, InputsLast):
        return right.product(spec, left)
    terms = re.split(",|->", spec)
    runs = _runs(terms)
    letter_sizes = dict(zip(terms[0] + terms[1], left.shape + right.shape, strict=True))

    def runs_of(term):
        return sorted((run for run in runs if run[0] in term), key=term.index)

    def merge_axes(array, term):
        return array.reshape([math.prod(letter_sizes[c] for c in run) for run in runs_of(term)])

    left_letters, right_letters, result_letters = (
        "".join(run[0] for run in runs_of(term)) for term in terms
    )
    x, w = merge_axes(left, terms[0]), merge_axes(right, terms[1])
    out = _product(left_letters, right_letters, result_letters, x, w)
    return out.reshape([letter_sizes[c] for c in terms[2]])


def _runs(terms):
    """Group an einsum's letters into runs that can be merged.

    Every term has all letters of a run, in this order, or none of them.
    """
    runs: list[str] = []
    for letter in dict.fromkeys(terms[0] + terms[1]):
        last_letter = runs[-1][-1] if runs else ""
        if runs and all(
            last_letter + letter in term or not {last_letter, letter} & set(term) for term in terms
        ):
            runs[-1] += letter
        else:
            runs.append(letter)
    return runs


def _product(left_letters, right_letters, result_letters, x, w):
    """Compute einsum("LEFT,RIGHT->RESULT", x, w), given the letters of each."""
    if _is_of_few_rows(left_letters, right_letters, result_letters, x):
        # A tall matrix times 8 or 32 columns takes less time than 8 or 32 rows times a wide matrix
        tall_letters = right_letters[0] + left_letters[0]
        out = _float32(f"{right_letters},{left_letters}->{tall_letters}", w, x)
        # Without the barrier the compiler would swap the operands back
        return jnp.einsum(f"{tall_letters}->{result_letters}", jax.lax.optimization_barrier(out))
    if x.dtype == jnp.bfloat16:
        # In bfloat16, the operand with the result's first axes needs contiguous rows: it goes left
        batch = [c for c in result_letters if c in left_letters and c in right_letters]
        if result_letters[len(batch)] in right_letters:
            left_letters, right_letters, x, w = right_letters, left_letters, w, x
        left_letters, x = _contracted_last(left_letters, result_letters, x)
    return _float32(f"{left_letters},{right_letters}->{result_letters}", x, w)


def _is_of_few_rows(left_letters, right_letters, result_letters, x):
    """Return whether x is [m d], w is [v d], and m is small."""
    is_matrices = (
        len(left_letters) == len(right_letters) == len(result_letters) == 2
        and left_letters[1] == right_letters[1]
    )
    return is_matrices and 1 < len(x) <= FEW.get(str(x.dtype), 0)


def _contracted_last(letters, result_letters, x):
    """Transpose x so that its contracted axes come last; return its letters and x.

    The compiler multiplies in bfloat16 only if these rows are contiguous. If they already are, x
    does not change.
    """
    turned_letters = "".join(sorted(letters, key=lambda c: c not in result_letters))
    if turned_letters == letters:
        return letters, x
    x = jnp.einsum(f"{letters}->{turned_letters}", x)
    # Without the constraint the compiler would merge the transpose into the product again
    return turned_letters, with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _float32(spec, left, right):
    return jnp.einsum(
        spec, left, right, precision=precision_of(left), preferred_element_type=jnp.float32
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputsLast:
    """A Linear layer's weight for decoding, with its inputs last.

    Attributes:
        array: [outputs... inputs...]. Specs of products still name the axes as [inputs...
            outputs...].
    """

    array: jax.Array

    @classmethod
    def of(cls, w, num_inputs):
        """Convert w; a product contracts its first num_inputs axes."""
        return cls(jnp.moveaxis(w, range(num_inputs), range(-num_inputs, 0)))

    @property
    def ndim(self):
        """Number of axes, which `of` does not change."""
        return self.array.ndim

    def astype(self, dtype):
        """Return this weight with its array in another dtype."""
        return InputsLast(self.array.astype(dtype))

    def product(self, spec, x):
        """Compute an einsum that is written for the weight before its conversion.

        The contracted axes are x's last, in the same order in x and in the weight.
        """
        x_letters, w_letters, _ = re.split(",|->", spec)
        num_inputs = len(set(x_letters) & set(w_letters))
        row_shape, output_shape = x.shape[:-num_inputs], self.array.shape[:-num_inputs]
        input_size = math.prod(x.shape[-num_inputs:])
        out = einsum("md,vd->mv", x.reshape(-1, input_size), self.array.reshape(-1, input_size))
        return out.reshape(*row_shape, *output_shape)
