"""Decoding, an update and a GRPO step on the devices that JAX has, in bfloat16, beside what a plan predicts.

python -m tests.benchmarks.accelerator [--rounds 5] [--model smollm2 qwen_1_5b v3_stack] [--write]

Parameters are random: time does not depend on them. A CPU gets two layers and short texts, to show that it
runs. The prediction is the roofline of the compiled program on a TPU, and on a GPU that of the work that the
model needs. --write puts the rows into configs/results/accelerator.json, in the place of this device's.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import numpy as np

from configs import models
from deepseek_jax.costs.chips import chip_of
from deepseek_jax.costs.flops import forward_flops, useful_flops
from deepseek_jax.costs.program import argument_bytes, update_program
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import build_model, random_params
from deepseek_jax.parallel import make_mesh, put_batch
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.kinds.reinforce import reinforcement_programs
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.reinforce.update import jitted_update
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout import AnswerOptions, Policy, generate
from deepseek_jax.rollout.programs import Workload, rollout_programs
from deepseek_jax.settings import build
from deepseek_jax.training.settings import FitSettings
from deepseek_jax.training.update import create_update
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from launch.planning.compiled import compile_programs
from launch.planning.roofline import seconds_of
from tests.benchmarks.results import FOLDER, as_text, revision
from tests.benchmarks.timing import batch_of, print_table

# A dense layer and a sparse one of DeepSeek-V3, with as many experts as fit beside their optimizer's state
V3_STACK = dict(
    num_hidden_layers=2,
    first_k_dense_replace=1,
    n_routed_experts=32,
    n_group=1,
    topk_group=1,
    num_nextn_predict_layers=0,
    vocab_size=32_768,
)
MODELS = {
    "smollm2": (models.smollm2_135m(), "SmolLM2-135M"),
    "qwen_1_5b": (models.qwen2_5_math_1_5b(), "Qwen2.5-1.5B"),
    "v3_stack": (models.deepseek_v3() | V3_STACK, "DeepSeek-V3, 2 layers, 32 experts"),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Slots that decode `new` tokens each after prompts of `prompt`; rows of an update, of `length` tokens;
    prompts of a GRPO step, with `group` completions each.
    """

    slots: int
    prompt: int
    new: int
    rows: int
    length: int
    prompts: int
    group: int


LARGE = Sizes(slots=64, prompt=128, new=512, rows=8, length=2048, prompts=8, group=8)
SMALL = Sizes(slots=8, prompt=16, new=16, rows=8, length=128, prompts=8, group=2)
# Of a model on a CPU, whose memory the widths of DeepSeek-V3 would fill
IN_SMALL = dict.fromkeys(MODELS, dict(num_hidden_layers=2, vocab_size=512))
IN_SMALL["v3_stack"] = models.deepseek_v3_tiny(vocab_size=512)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call of `run` does: its tokens, the FLOPs that the model needs for them, and the bytes that a
    device reads at least; predicted: seconds, None without a model of the device.
    """

    run: callable
    tokens: int
    flops: float
    bytes_read: float | None
    predicted: float | None


def decoding(config, mesh, sizes, chip):
    """Work of a rollout, prefill included."""
    params = random_params(config, mesh, 0)
    prompts = np.random.default_rng(0).integers(2, config.vocab_size, (sizes.slots, sizes.prompt))
    options = AnswerOptions(max_completion_length=sizes.new, slots=sizes.slots)

    def run():
        with jax.set_mesh(mesh):
            rollout = generate(
                config,
                params,
                prompts.tolist(),
                max_completion_length=sizes.new,
                slots=sizes.slots,
            )
        assert rollout.completion_mask.all()

    planned = rollout_programs(config, mesh, options, Workload(sizes.slots, sizes.prompt))
    compiled = dict((program.name, each) for program, each in compile_programs(planned))
    programs = {program.name: program for program in planned}
    step = compiled["decode"].memory.arguments
    flops = sum(programs[name].flops * programs[name].runs for name in ("prefill", "decode"))
    steps = programs["decode"].token_steps
    predicted = None
    if chip is not None:
        predicted = sum(
            predicted_seconds(compiled[name], programs[name], chip, mesh)
            for name in ("weights", "prefill", "decode")
        )
    return Work(run, sizes.slots * sizes.new, flops, step * steps, predicted)


def update(config, mesh, sizes, chip):
    """Work of an update on packed rows."""
    settings = build(FitSettings, dict(num_steps=100, optimizer=dict(learning_rate=1e-4)), "update")

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch)

    params = random_params(config, mesh, 0)
    create, step = create_update(settings, loss_fn, params, mesh)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (sizes.rows, sizes.length))
    batch, rng = put_batch(mesh, batch_of(tokens)), jax.random.key(0)
    shapes = create.eval_shape(params)
    state = [create(params)]

    def run():
        with jax.set_mesh(mesh):
            state[0], metrics = step(state[0], batch, rng)
        jax.block_until_ready((state[0], metrics))

    tokens = sizes.rows * sizes.length
    flops = tokens * useful_flops(config, sizes.length, trains_mtp=False)
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch
    )
    program = update_program("update", step, shapes, described, config=config, mesh=mesh)
    predicted = None
    if chip is not None:
        ((_, compiled),) = compile_programs([program])
        predicted = predicted_seconds(compiled, program, chip, mesh)
    return Work(run, tokens, flops, argument_bytes(program.arguments), predicted)


def grpo_step(config, mesh, sizes, chip):
    """Work of a whole step: sample, score, update. The prediction leaves out the rewards, whose time is the
    host's.
    """
    settings = build(
        GrpoSettings,
        dict(
            recipe="grpo",
            num_steps=100,
            seed=0,
            prompts_per_step=sizes.prompts,
            group_size=sizes.group,
            accuracy="exact_answer",
            rewards=dict(exact_answer=1.0),
            data=dict(),
            init_from="random weights",
            rollout=dict(
                max_prompt_length=sizes.prompt,
                max_completion_length=sizes.new,
                slots=sizes.prompts * sizes.group,
            ),
            loss=dict(),
            optimizer=dict(learning_rate=1e-6),
        ),
        "config",
    )
    params = random_params(config, mesh, 0)
    create, step = jitted_update(settings, config, params, mesh)
    rng = np.random.default_rng(0)
    tokenizer = arithmetic_tokenizer()
    examples = [
        {"question": "q", "answer": "1", "prompt_ids": ids.tolist()}
        for ids in rng.integers(2, tokenizer.vocab_size, (sizes.prompts, sizes.prompt))
    ]
    policy = Policy(config, None, tokenizer, "{question}")
    questions, rewards = {"reasoning": examples}, Rewards(settings.rewards)
    source = GroupSource(policy, questions, rewards, settings, mesh, None)
    state, steps = [create(params)], iter(range(10**6))

    def run():
        with jax.set_mesh(mesh):
            batches, _ = source.next(state[0], next(steps))
            for batch in batches:
                state[0], metrics = step(state[0], batch, jax.random.key(0))
        jax.block_until_ready((state[0], metrics))

    tokens = sizes.prompts * sizes.group * sizes.new
    each = forward_flops(config, sizes.prompt + sizes.new / 2)
    predicted = None
    if chip is not None:
        planned = compile_programs(reinforcement_programs("", settings, config, mesh))
        predicted = sum(
            predicted_seconds(compiled, program, chip, mesh) for program, compiled in planned
        )
    # Sampled once, and learned from at three times the price
    return Work(run, tokens, 4 * tokens * each, None, predicted)


# The file before its first row. Its table needs a block in tests/benchmarks/README.md
EMPTY = {
    "command": "python -m tests.benchmarks.accelerator --write",
    "machine": "the devices of each row, in bfloat16",
    "columns": {
        "device": "",
        "case": "",
        "tokens/s": ",.0f",
        "MFU": ".1%",
        "memory bandwidth": ".0%",
        "predicted / measured time": ".0%",
    },
    "rows": [],
    "caveats": [],
}
WORKS = {"decoding": decoding, "update": update, "GRPO step": grpo_step}


def predicted_seconds(compiled, program, chip, mesh):
    """What a plan predicts of all calls in a step: the likely time of the compiled program on a TPU;
    elsewhere the roofline of the FLOPs that the model needs and of the arguments' bytes.
    """
    if mesh.devices.flat[0].platform == "tpu":
        return seconds_of(program, compiled, chip).of_step(program)[1]
    work = program.flops / mesh.size / chip.flops_per_second
    return program.runs * max(work, compiled.memory.arguments / chip.hbm_bytes_per_second)


def measure(name, work, mesh, rounds):
    """A row of the results."""
    chip, device = chip_of(mesh.devices.ravel()), mesh.devices.flat[0]
    on_cpu = device.platform == "cpu"
    block, title = MODELS[name]
    block = block | (IN_SMALL[name] if on_cpu else {}) | dict(dtype="bfloat16")
    config, sizes = build_model(block), SMALL if on_cpu else LARGE
    done = WORKS[work](config, mesh, sizes, chip)
    # Compiles
    done.run()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        done.run()
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    row = {
        "version": revision(),
        "device": f"{len(mesh.devices.ravel())} x {device.device_kind}",
        "case": f"{title}{', in small' if on_cpu else ''}: {work}",
        "tokens/s": round(done.tokens / median, 1),
    }
    if chip is not None:
        row["MFU"] = done.flops / (median * mesh.size * chip.flops_per_second)
        if done.bytes_read is not None:
            row["memory bandwidth"] = done.bytes_read / (median * chip.hbm_bytes_per_second)
    if done.predicted is not None:
        row["predicted / measured time"] = done.predicted / median
    return row


def written(rows, path):
    """Put rows into the file, in the place of those of the same device and case."""
    result = json.loads(path.read_text()) if path.exists() else EMPTY
    of = {(row["device"], row["case"]) for row in rows}
    kept = [row for row in result["rows"] if (row["device"], row["case"]) not in of]
    path.write_text(as_text(result | {"rows": [*kept, *rows]}))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args(arguments)
    mesh, rows = make_mesh(), []
    for name in args.model:
        for work in WORKS:
            try:
                rows.append(measure(name, work, mesh, args.rounds))
            except jax.errors.JaxRuntimeError as error:
                # A small chip runs the smaller models
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"{name}, {work}: does not fit this device", flush=True)
                continue
            print(rows[-1], flush=True)
    columns = [key for key in EMPTY["columns"] if any(key in row for row in rows)]
    shown = [[_text(row.get(key)) for key in columns] for row in rows]
    print_table("bfloat16", columns, shown)
    if args.write:
        written(rows, FOLDER / "accelerator.json")


def _text(value):
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
