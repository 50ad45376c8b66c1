"""What each form for a CPU gains: a whole step without it over the same step with all, in one process, as
medians of the rounds' ratios. Other work on the machine moves CPU seconds less than the clock's; "nothing"
shows by how much. A form stays while one of the steps gains 5% by it.

python -m tests.benchmarks.cpu_forms [--rounds 9] [--step "decode float32" ...]
"""

import argparse
import contextlib
import statistics
import time
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import models
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.ops.platform import FORMS, SIZES, form_of
from deepseek_jax.rollout import decode as programs
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.benchmarks.timing import batch_of, print_table
from tests.benchmarks.train_step import OPTIMIZER, SIXTEEN

# The rows of the tables of ops.platform that a form is
ROWS = {
    "nothing": [],
    "weights with inputs last": ["prepare"],
    "products as matrices": ["einsum", "prepare"],  # the first form is for these products alone
    "bits of what is saved": ["save_for_backward"],
    "short blocks of attention": ["longest_whole_row", "attention_block"],
    "experts piece by piece": ["grouped_matmul"],
}
ROWS["all of them"] = sorted(set(sum(ROWS.values(), [])))
TRAINING = dict(scan_layers=True, remat="selective")
PROMPT, NEW, LENGTH = 64, 16, 256


@contextlib.contextmanager
def without(rows):
    """Programs traced in here take the plain forms of these rows."""
    with contextlib.ExitStack() as stack:
        for table in (FORMS, SIZES):
            plain = {row: {"any": table[row]["any"]} for row in rows if row in table}
            stack.enter_context(mock.patch.dict(table, plain))
        yield


def random_model(sizes):
    config = ModelConfig(**sizes)
    make = jax.jit(lambda key: nn.unbox(init_params(config, key)))
    return config, make(jax.random.key(0))


def decode(dtype):
    """SmolLM2-135M's shape decodes NEW tokens of 8 sequences: -> a function that makes a step's function."""
    config, params = random_model(models.smollm2_135m() | dict(dtype=dtype))
    decoding, prepared = Decoding(config), {}

    def make():
        form = form_of("prepare")
        if form not in prepared:
            prepare = jax.jit(
                lambda params: programs.decoding_weights.__wrapped__(decoding, params)
            )
            prepared[form] = prepare(params)
        weights = prepared[form]
        tables = programs.rotations(config, PROMPT + NEW)
        slots = programs.empty_slots(decoding, 8, PROMPT, NEW, NEW)
        slots = slots._replace(ended=~slots.ended, prompt_length=jnp.full(8, PROMPT))
        run = jax.jit(lambda *a: programs.decode.__wrapped__(decoding, Sampling(), (), *a, 8))
        return lambda: jax.block_until_ready(run(weights, tables, slots))

    return make


def update(sizes, rows):
    """One update of rows x LENGTH tokens: likewise."""
    config, params = random_model(sizes | TRAINING)
    batch = batch_of(np.random.default_rng(0).integers(0, config.vocab_size, (rows, LENGTH)))
    tx, rng = OPTIMIZER.make(1000), jax.random.key(0)
    state = [TrainState.create(params, tx)]  # one for all: each is as large as three models

    def make():
        step = make_train_step(
            lambda params, batch, rng: next_token_loss(config, params, batch), tx
        )
        step = jax.jit(step, donate_argnums=0)

        def run():
            state[0], _ = jax.block_until_ready(step(state[0], batch, rng))

        return run

    return make


# The forms that stand in no program of a kind of step
UNCONCERNED = {
    "decode": ("bits of what is saved", "short blocks of attention", "experts piece by piece"),
    "update": ("weights with inputs last", "experts piece by piece"),
    "tiny V3": ("weights with inputs last",),
}
STEPS = {}
for dtype in ("float32", "bfloat16"):
    STEPS |= {
        f"decode {dtype}": lambda dtype=dtype: decode(dtype),
        f"update {dtype}": lambda dtype=dtype: update(models.smollm2_135m() | dict(dtype=dtype), 1),
        f"tiny V3 {dtype}": lambda dtype=dtype: update(
            models.deepseek_v3_tiny() | SIXTEEN | dict(dtype=dtype), 8
        ),
    }


def timed(run):
    """(seconds by the clock, CPU seconds) of one call."""
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cpu


def measure(name, rounds):
    """Rows of strings: a form, the step's ratios without it by the clock and in CPU seconds."""
    make, runs = STEPS[name](), {}
    concerned = [form for form in ROWS if form not in UNCONCERNED[name.rpartition(" ")[0]]]
    for form, rows in {"": [], **{form: ROWS[form] for form in concerned}}.items():
        with without(rows):
            runs[form] = make()
            runs[form]()  # compile here
    seconds = {form: [] for form in runs}
    for turn in range(rounds):
        for form in list(runs)[:: 1 if turn % 2 else -1]:
            seconds[form].append(timed(runs[form]))
    found = []
    for form in concerned:
        pairs = zip(seconds[form], seconds[""], strict=True)
        ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in pairs]
        medians = [statistics.median(values) for values in zip(*ratios, strict=True)]
        found.append([name, form, *(f"{ratio:.2f}" for ratio in medians)])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--step", choices=STEPS, nargs="+", default=list(STEPS))
    args = parser.parse_args()
    for name in args.step:
        print_table(
            "times as long", ["step", "without", "clock", "CPU s"], measure(name, args.rounds)
        )


if __name__ == "__main__":
    main()
