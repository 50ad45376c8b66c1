"""Checks of what a machine computes, against plain forms and numpy: for launch/doctor.py.

A plain form is the form of an op that any machine has (ops.platform). Each check compiles few
programs, for a model as small as a TPU's kernels accept: configs/models.deepseek_v3_tiled. A check
returns what it found, in words. It raises ValueError, with the remedy, if something is wrong.

This module imports JAX at its top, so it is imported after the flags are read.

Tests: tests/launch/test_doctor.py.
"""

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import models
from deepseek_jax.checkpoint.store import Store
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models.heads import forward
from deepseek_jax.models.network_config import build_model
from deepseek_jax.models.params import random_params
from deepseek_jax.ops import decoding, fp8
from deepseek_jax.ops.attention import attend, attend_latent
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.fp8_dot import fp8_dot
from deepseek_jax.ops.fp8_grouped import grouped_fp8
from deepseek_jax.ops.grouped_matmul import grouped_matmul, product_over_rows
from deepseek_jax.ops.index_loss import index_loss
from deepseek_jax.ops.platform import FORMS, form_of, plain_forms
from deepseek_jax.ops.selected import Queries, attend_selected
from deepseek_jax.ops.selection import select
from deepseek_jax.parallel.ragged import ragged_all_to_all
from deepseek_jax.reinforce.update import LARGEST_MEAN_GAP
from deepseek_jax.rollout.generation import generate
from launch.check import Check

# The largest difference, relative to the largest number of the plain form. Sums are in another
# order, or results are rounded to bfloat16
LIMITS = {"float32": 1e-5, "bfloat16": 0.02}
# The largest difference of an update's whole gradient, relative to the gradient's length. If
# bfloat16 sends a token to another expert, the router's part differs by a third
GRADIENTS = {"float32": 1e-4, "bfloat16": 0.05}
# Rows of this many tokens use the kernel for long rows
LENGTH = 1152
# No kernel takes float32, so its rows are short: for longer ones, a TPU's compiler takes two
# minutes for an update
LENGTHS = {"float32": 128, "bfloat16": LENGTH}
PROMPT, COMPLETION = list(range(1, 9)), 56
# GiB of host memory for each device: compiling and reading checkpoints need them
LEAST_GIB = 2.0
VOCABULARY = 32
REPORT = "report it with this page, and name another implementation= of the op until then"


def of_machine(mesh: Mesh, folder: Path) -> list[Check]:
    """Return the checks of what a mesh's devices compute.

    Args:
        folder: One check writes a checkpoint there and removes it again.
    """
    return [
        Check("host memory", host_memory),
        Check("exchange", lambda: exchange(mesh)),
        Check("checkpoint", lambda: checkpoint(mesh, folder)),
        Check("products of float32", exact_products),
        Check("forms of ops", forms),
        Check("sampling in float32", lambda: sampling("float32")),
        Check("sampling in bfloat16", lambda: sampling("bfloat16")),
        Check("update", update),
    ]


def host_memory():
    """Check that this host has LEAST_GIB of memory for each of its devices."""
    host_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()
    if host_gib < LEAST_GIB * devices:
        raise ValueError(
            f"this host has {host_gib:.1f} GiB for {devices} devices, and compiling and checkpoints need "
            f"{LEAST_GIB:.0f} GiB for each; take a host with more memory"
        )
    return f"{host_gib:.1f} GiB"


def exchange(mesh: Mesh):
    """Send a different number from each device to each device, as the experts' exchange does."""
    axes, n = mesh.axis_names, mesh.size
    spec = PartitionSpec(axes)
    # Device i sends the row i n + j to device j
    rows = np.arange(n * n, dtype=np.float32).reshape(n * n, 1)
    sharding = NamedSharding(mesh, spec)
    device_rows = jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

    def send_rows(rows_nx):
        input_offsets, own_index = jnp.arange(n, dtype=jnp.int32), jax.lax.axis_index(axes)
        counts, output_offsets = jnp.ones(n, jnp.int32), jnp.full(n, own_index, jnp.int32)
        routing = input_offsets, counts, output_offsets, counts
        return ragged_all_to_all(rows_nx, jnp.full_like(rows_nx, -1), *routing, axis_name=axes)

    exchange_rows = jax.shard_map(
        send_rows, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    expected = rows.reshape(n, n).T.reshape(n * n, 1)
    for shard in jax.jit(exchange_rows)(device_rows).addressable_shards:
        received_rows, expected_rows = np.asarray(shard.data), expected[shard.index]
        if (received_rows != expected_rows).any():
            sender = int(np.argmax((received_rows != expected_rows).any(1)))
            raise ValueError(
                f"{shard.device} got {received_rows[sender, 0]:.0f} from device {sender} of the mesh, and "
                f"should have got {expected_rows[sender, 0]:.0f}: devices are in a wrong order, or a link is "
                "faulty; restart the slice, or take another"
            )
    return f"{n} x {n} messages as {form_of('ragged_all_to_all')}"


def checkpoint(mesh: Mesh, folder: Path):
    """Write an array that is on all devices to a checkpoint, and read it again."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    numbers = _normal(0, mesh.size * 1024)
    array = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    folder = folder / ".deepseek_jax_check"
    try:
        with Store(folder) as store:
            store.save(1, {"state": {"array": array}, "data": {}})
        # A new Store: the first one may still hold what it has written
        with Store(folder) as store:
            restored_array = store.restore(1, {"array": array})["state"]["array"]
        for shard in restored_array.addressable_shards:
            if (np.asarray(shard.data) != numbers[shard.index]).any():
                raise ValueError(
                    f"{folder.parent} gave back other numbers than were written; use another file system"
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"{numbers.nbytes / 2**10:.0f} KiB in {folder.parent}"


def exact_products():
    """Compare a product of float32 arrays by ops.dot with numpy's product in float64."""
    x, w = (_normal(i, 256, 256) for i in range(2))
    difference = apart(
        jax.jit(lambda x, w: dot("md,df->mf", x, w))(x, w),
        x.astype(np.float64) @ w.astype(np.float64),
    )
    message = f"operands were rounded: a product is off by {difference:.1e} of its largest number"
    _hold(difference, LIMITS["float32"], message)
    return f"off by {difference:.1e} of the largest number, at most {LIMITS['float32']:.0e}"


class Case(NamedTuple):
    """An op of FORMS, with a call that uses it.

    Attributes:
        op: The op's name in FORMS.
        function: function(*arrays) computes with the op.
        learns: True if the gradients are compared too.
    """

    op: str
    function: Callable
    arrays: tuple[Any, ...]
    learns: bool = False

    def computed(self):
        """Compute the result and the gradients, by a program that is traced anew.

        Returns:
            (the results, the gradients of the sum of their squares). The gradients are () unless
            `learns` is true.
        """

        def loss(*arrays):
            out = self.function(*arrays)
            squares = [jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(out)]
            return sum(squares), out

        def result_and_gradients(*arrays):
            if not self.learns:
                return self.function(*arrays), ()
            gradients, out = jax.grad(loss, tuple(range(len(arrays))), has_aux=True)(*arrays)
            return out, gradients

        return jax.block_until_ready(jax.jit(result_and_gradients)(*self.arrays))


def cases() -> list[Case]:
    """Return a Case for each op of FORMS that computes the same in all its forms.

    The arrays have shapes that all forms take.
    """
    segment_ids = jnp.ones((1, LENGTH), jnp.int32)
    qkv = several(jnp.bfloat16, *[(1, LENGTH, 2, 128)] * 3)
    of_heads, of_keys, of_weights = (1, LENGTH, 8, 128), (1, LENGTH, 128), (1, LENGTH, 8)
    index = several(jnp.bfloat16, of_heads, of_keys, of_weights)
    queries_and_keys = several(jnp.bfloat16, of_heads, of_heads)
    queries = several(jnp.bfloat16, (1, LENGTH, 16, 192), (1, LENGTH, 8, 128), (1, LENGTH, 8))
    (keys,) = several(jnp.bfloat16, (1, LENGTH, 192 + 128))
    # Every query has the first 128 keys
    slots = jnp.broadcast_to(jnp.arange(128, dtype=jnp.int32), (1, LENGTH, 128))
    query_and_cache = several(jnp.bfloat16, (2, 16, 192), (2, 256, 192))
    rows, kernel = several(jnp.bfloat16, (1024, 128), (4, 128, 256))
    counts, mask = jnp.array([256, 0, 512, 256]), jnp.ones((2, 256), bool)
    x, w = several(jnp.bfloat16, (256, 128), (128, 256))
    few_rows, wide_matrix = several(jnp.float32, (8, 128), (128, 256))
    (scores,) = several(jnp.float32, (16, 512))
    return [
        Case("einsum", functools.partial(dot, "md,df->mf"), (few_rows, wide_matrix)),
        Case("prepare", _decoded, (few_rows, wide_matrix)),
        Case("attend", lambda *a: attend(*a, scale=0.1, segment_ids=segment_ids), qkv, True),
        Case("attend_selected", functools.partial(_selected, slots), (*queries, keys), True),
        Case("attend_latent", functools.partial(_latent, mask), query_and_cache),
        Case("index_loss", functools.partial(_index_loss, queries_and_keys), index, True),
        Case("kth_largest", lambda s: select(s, s < 1e9, 64).astype(jnp.float32), (scores,)),
        Case("grouped_matmul", lambda r, k: grouped_matmul(r, k, counts), (rows, kernel), True),
        Case("product_over_rows", lambda r: product_over_rows(r, r, counts), (rows,)),
        Case("quantize", _dequantized, (x,)),
        Case("block_product", functools.partial(fp8_dot, "md,df->mf"), (x, w), True),
        Case(
            "grouped_fp8", lambda r, k: grouped_fp8(r, k, counts, block=256), (rows, kernel), True
        ),
    ]


def forms():
    """Compare each op in this machine's form with its plain form."""
    texts = []
    for case in cases():
        op, began = case.op, time.monotonic()
        machine_results = case.computed()
        seconds = time.monotonic() - began
        with plain_forms():
            plain_results = case.computed()
        difference = max(
            map(apart, jax.tree.leaves(machine_results), jax.tree.leaves(plain_results))
        )
        limit = LIMITS[case.arrays[0].dtype.name]
        comparison = f"{op} as {form_of(op)!r} is off from {FORMS[op]['any']!r}"
        _hold(difference, limit, f"{comparison} by {difference:.1e} of the largest number")
        texts.append(
            f"{op}={form_of(op)} off by {difference:.1e} (at most {limit:.0e}), {seconds:.1f} s"
        )
    return "; ".join(texts)


def sampling(dtype: str):
    """Compare a completion's log-probabilities by the sampler with one forward pass."""
    config = _model(dtype)
    params = random_params(config)
    rollout = generate(config, params, [PROMPT], max_completion_length=COMPLETION, slots=1)
    tokens = jnp.array([PROMPT + rollout.completion_ids[0].tolist()])
    logits_btv = jax.jit(functools.partial(forward, config))(params, tokens)
    logprobs_tv = jax.nn.log_softmax(logits_btv[0, len(PROMPT) - 1 : -1].astype(jnp.float32))
    logprobs_t = jnp.take_along_axis(logprobs_tv, tokens[0, len(PROMPT) :, None], axis=-1)[:, 0]
    gap = float(jnp.abs(logprobs_t - rollout.sampler_logprobs[0]).mean())
    # The gap at which a run ends
    limit = LARGEST_MEAN_GAP[dtype]
    _hold(gap, limit, f"the sampler and a forward pass are {gap:.1e} nats a token apart")
    return f"{gap:.1e} nats a token from a forward pass, at most {limit:.0e}"


def update():
    """Compare the gradients of one update by this machine's forms with gradients by plain forms."""
    texts = []
    for dtype, limit in GRADIENTS.items():
        config = _model(dtype)
        params, batch = random_params(config), _batch(LENGTHS[dtype])

        def gradients(params, config=config, batch=batch):
            return jax.grad(lambda p: next_token_loss(config, p, batch)[0])(params)

        machine_gradients = jax.jit(lambda p, f=gradients: f(p))(params)
        with plain_forms():
            plain_gradients = jax.jit(lambda p, f=gradients: f(p))(params)
        difference = float(
            _length(jax.tree.map(jnp.subtract, machine_gradients, plain_gradients))
            / _length(plain_gradients)
        )
        _hold(
            difference,
            limit,
            f"the gradient in {dtype} is off from plain forms by {difference:.1e} of its length",
        )
        texts.append(
            f"{dtype} off by {difference:.1e} of the gradient's length (at most {limit:.0e})"
        )
    return ", ".join(texts)


def _hold(difference, limit, message):
    """Raise ValueError if a difference is above its limit, or NaN."""
    if not difference <= limit:
        raise ValueError(f"{message}, above {limit:.0e}; {REPORT}")


def _decoded(x, w):
    return dot("md,df->mf", x, decoding.prepare(w, 1))


def _latent(mask, q, cache):
    return attend_latent(q, cache, kv_lora_rank=128, scale=0.1, mask=mask)


def _index_loss(attention, *index):
    segments = jnp.ones(index[1].shape[:2], jnp.int32)
    return index_loss(index, attention, segments, segments, None, first=0, scale=0.1)


def _selected(slots, q, index_q, index_w, keys):
    queries = Queries(q, index_q, index_w.astype(jnp.float32))
    return attend_selected(queries, keys, slots, kv_lora_rank=128, scale=0.1)


def _dequantized(x):
    values, scale = fp8.quantize(x, fp8.ROW)
    return fp8.dequantize(values, scale, fp8.ROW)


def _model(dtype):
    return dataclasses.replace(build_model(models.deepseek_v3_tiled(VOCABULARY)), dtype=dtype)


def _batch(length):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, length)).astype(np.int32)
    ones = np.ones((1, length), np.int32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": ones,
        "positions": np.arange(length, dtype=np.int32)[None],
        "loss_mask": ones.astype(bool),
        "normalizer": np.float32(length),
        "num_tokens": np.float32(length),
    }


def _length(tree):
    return jnp.sqrt(sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)))


def apart(result, plain):
    """Return the largest difference, relative to the largest number of the plain form.

    It is infinite if a number of `result` is NaN, and NaN if a number of `plain` is.
    """
    own_array, plain_array = (np.asarray(x, np.float64) for x in (result, plain))
    difference = np.abs(own_array - plain_array).max() / np.abs(plain_array).max()
    return float(np.nan_to_num(difference, nan=np.inf))


def several(dtype, *shapes):
    """Return an array of normal random numbers for each shape, the same in every call."""
    return tuple(jnp.asarray(_normal(i, *shape), dtype) for i, shape in enumerate(shapes))


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
