"""Shared by the benchmarks: interleaved timing, medians, the machine's peak FLOP/s, a batch, a table."""

import statistics
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table


def interleave(contestants, rounds):
    """Time functions in turn, after one warm-up each: name -> seconds of every round."""
    for run in contestants.values():
        run()
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds):
    """name -> median seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_flops():
    """FLOP/s of this machine's best float32 matrix product. A step's FLOPs divided by it are a lower bound of
    its seconds, if its products are in float32.
    """
    x = jax.numpy.ones((4096, 4096))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * 4096**3 / best


def batch_of(tokens):
    """Rows of one document each, int[b t]."""
    mask = np.ones(tokens.shape, bool)
    mask[:, -1] = False
    return {
        "tokens": tokens.astype(np.int32),
        "targets": np.roll(tokens, -1, axis=1).astype(np.int32),
        "loss_mask": mask,
        "segment_ids": np.ones(tokens.shape, np.int32),
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "normalizer": np.float32(mask.sum()),
        "num_tokens": np.float32(tokens.size),
    }


def print_table(title, columns, rows):
    """Print one rich table; rows of strings."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
