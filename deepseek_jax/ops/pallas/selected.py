"""A function of each query and the rows that it selected: scores stay in a TPU core's vector memory.

A kernel computes one query after the other. A second one computes the gradient: it differentiates
the same function.

More dimension letters: n, queries; k, the rows that a query selected; z, the numbers of a row.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from deepseek_jax.trees import PyTree

# Rows of two queries, of which one arrives, as many float32 gradients, and what the function computes
VECTOR_MEMORY = 64 * 2**20


def takes(keys_bsz) -> bool:
    """Return whether the kernels take these keys: products would round float32."""
    return keys_bsz.dtype == jnp.bfloat16


def results(
    function: Callable,
    queries: PyTree,
    rows_bmkz: jax.Array,
    mask_bm1k: jax.Array,
    interpret: bool = False,
) -> PyTree:
    """Call function(queries, rows, mask) for each query.

    Args:
        function: As in ops.selected.over_selected.
        queries: A tree of [b m p q] of floats.
        rows_bmkz: Each query's rows.
        mask_bm1k: bool, False where there is no row.
        interpret: Run the kernel's emulation, on any machine.
    """

    def selected_results(queries, rows_kz, mask_1k):
        return function(queries, rows_kz, mask_1k > 0)

    return _for_each_query(selected_results, interpret, queries, rows_bmkz, mask_bm1k)


def gradients(
    function: Callable,
    queries: PyTree,
    rows_bmkz: jax.Array,
    mask_bm1k: jax.Array,
    cotangents: PyTree,
    interpret: bool = False,
) -> tuple[PyTree, jax.Array]:
    """Return the gradients of `results` by the queries, and by the rows, float32."""

    def selected_gradients(queries, rows_kz, mask_1k, cotangents):
        of_query = lambda *arrays: function(*arrays, mask_1k > 0)  # noqa: E731
        _, pull_back = jax.vjp(of_query, queries, rows_kz)
        d_queries, d_rows_kz = pull_back(cotangents)
        return d_queries, d_rows_kz.astype(jnp.float32)

    operands = queries, rows_bmkz, mask_bm1k, cotangents
    return _for_each_query(selected_gradients, interpret, *operands)


def _for_each_query(function, interpret, *operands):
    """Call function(*operands) for each query, in one kernel. bool operands arrive as int32."""
    leaves, tree = jax.tree.flatten(operands)
    shape = leaves[0].shape[:2]
    leaves = [a.astype(jnp.int32) if a.dtype == bool else a for a in leaves]
    leaves = [a.reshape(-1, *a.shape[2:]) for a in leaves]
    of_one = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in leaves])
    out, out_tree = jax.tree.flatten(jax.eval_shape(function, *of_one))
    program = jax.make_jaxpr(function)(*of_one).jaxpr
    num_bytes = sum(a.size * a.dtype.itemsize for a in (*jax.tree.leaves(of_one), *out))
    # The gradient's program has the results' last product, which nothing reads: a compiler leaves it out
    needed_program, _ = dce_jaxpr(program, [True] * len(out))

    def kernel(*refs):
        arrays = jax.tree.unflatten(tree, [ref[...] for ref in refs[: len(leaves)]])
        results = jax.tree.leaves(function(*arrays))
        for ref, result in zip(refs[len(leaves) :], results, strict=True):
            ref[...] = result

    def call(*leaves):
        n = len(leaves[0])
        return pl.pallas_call(
            kernel,
            grid=(n,),
            in_specs=[_of_one_query(a.shape[1:]) for a in leaves],
            out_specs=[_of_one_query(a.shape) for a in out],
            out_shape=[jax.ShapeDtypeStruct((n, *a.shape), a.dtype) for a in out],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",), vmem_limit_bytes=VECTOR_MEMORY
            ),
            cost_estimate=pl.CostEstimate(
                flops=n * _flops_of_products(needed_program),
                bytes_accessed=n * num_bytes,
                transcendentals=0,
            ),
            name=function.__name__,
            interpret=interpret,
        )(*leaves)

    if interpret:
        # The emulation copies all operands at each step of a grid: a query has a grid of its own
        flat = jax.lax.map(lambda one: call(*(a[None] for a in one)), leaves)
    else:
        flat = call(*leaves)
    arrays = [a.reshape(*shape, *one.shape) for a, one in zip(flat, out, strict=True)]
    return jax.tree.unflatten(out_tree, arrays)


def _of_one_query(shape):
    return pl.BlockSpec((None, *shape), lambda query: (query, 0, 0))


def _flops_of_products(jaxpr):
    flops = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, (result,) = equation.invars[0].aval, equation.outvars
            flops += 2 * result.aval.size * math.prod(left.shape[axis] for axis in contracted)
        flops += sum(map(_flops_of_products, jaxprs_in_params(equation.params)))
    return flops
