"""The programs of a rollout, for a plan: what rollout.engine calls, in its sizes."""

import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import forward_flops
from deepseek_jax.costs.program import GENERATION, SYNC, Program, everywhere, forward_work
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.decoding import decoding_mesh
from deepseek_jax.rollout import steps
from deepseek_jax.rollout.engine import batch_parts_of, rollout_config
from deepseek_jax.rollout.requests import PROMPT_BUCKET, chunk_rows
from deepseek_jax.rollout.sampling import Sampling


def rollout_programs(
    config: ModelConfig,
    mesh: Mesh,
    options,
    *,
    prompts: int,
    n: int = 1,
    prompt_length: int,
    dtype: str = "float32",
    name: str = "",
):
    """The Programs of one rollout: [Program], each after those whose results it takes.

    options: AnswerOptions. prompts: how many are answered, n times each. prompt_length: of the longest.
    dtype: of the parameters. name: a prefix of the programs' names. Caches are as large as they get, and
    every completion counts as the longest: both are the most that a rollout can need.
    """
    config = rollout_config(config)
    params = abstract_tree(config, mesh, dtype)
    if mesh.size > 1:
        mesh = decoding_mesh(mesh, config.num_attention_heads)
    devices, longest = mesh.size, options.max_completion_length
    slots = min(options.slots, -(-prompts * n // devices) * devices)
    room = -(-prompt_length // PROMPT_BUCKET) * PROMPT_BUCKET
    parts = batch_parts_of(mesh if devices > 1 else None, config)
    rows = chunk_rows(prompts, n, slots, parts)
    table = everywhere(mesh, (room + longest, config.rope_dim // 2), jnp.float32)
    tables = table, table
    fixed = config, Sampling(), config.eos_ids
    sizes = f"{slots:,} slots x {room + longest:,}"
    turns = -(-prompts * n // slots)
    needed = slots * forward_flops(config, room + longest / 2)

    def of_slots(dtype):
        return everywhere(mesh, (slots,), dtype)

    def program(called, function, arguments, *needs, **fields):
        needs = tuple(name + each for each in needs)
        return Program(name + called, function, arguments, mesh, needs=needs, **fields)

    prompt_rows = everywhere(mesh, (rows, room), jnp.int32), everywhere(mesh, (rows,), jnp.int32)
    free, numbers = dict(tokens=0, flops=0.0), of_slots(jnp.int32)
    return [
        program("weights", steps.decoding_weights, (config, params), part=SYNC, sizes="", **free),
        program(
            "prefill",
            steps.prefill,
            lambda weights: (config, weights, tables, *prompt_rows),
            "weights",
            part=GENERATION,
            times=-(-prompts // rows),
            **forward_work(config, rows, room),
        ),
        program(
            "slots",
            steps.empty_slots,
            (config, slots, room, longest, longest),
            part=GENERATION,
            sizes=sizes,
            **free,
        ),
        program(
            "seat",
            steps.seat,
            lambda state, prefilled: (
                *(*fixed, state, of_slots(bool), numbers, *prefilled, numbers),
                # New ones, not those of the slots
                state.keys.update(sharding=numbers.sharding),
            ),
            *("slots", "prefill"),
            part=GENERATION,
            sizes=sizes,
            times=turns,
            **free,
        ),
        program(
            "decode",
            steps.decode,
            lambda weights, state: (
                *(*fixed, weights, tables, state, everywhere(mesh, (), jnp.int32)),
            ),
            *("weights", "slots"),
            part=GENERATION,
            sizes=sizes,
            times=turns * longest,
            tokens=slots,
            flops=needed,
        ),
    ]
