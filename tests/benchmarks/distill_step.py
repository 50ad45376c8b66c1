"""A distillation step against PyTorch, interleaved. The teacher has SmolLM2-135M's shape, the student half
its width; 4 x 128 tokens, soft targets at temperature 2 and hard ones, AdamW on float32 weights. bfloat16
means matrix products in bfloat16, in PyTorch by autocast.

python -m tests.benchmarks.distill_step [--rounds 15] [--dtype float32 bfloat16]
python -m tests.benchmarks.distill_step --memory     # temporary bytes of the loss, without timing
"""

import argparse
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax.tree_util import Partial

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill.chunks import Outputs, Term, mean_over_tokens
from deepseek_jax.distill.divergences import hard_loss, soft_loss
from deepseek_jax.distill.top_k import top_k_logprobs, top_k_loss
from deepseek_jax.models import head_weight, hidden_states
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.benchmarks.peers import smollm2, smollm2_half
from tests.benchmarks.timing import interleave, medians, peak_flops, print_table

ROWS, LENGTH, TEMPERATURE, K = 4, 128, 2.0, 64
WEIGHTS = {"soft": 0.5, "hard": 0.5}
TRANSFORMERS, ONLINE, CACHED = "transformers", "teacher online", f"top {K} cached"
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, weight_decay=0.01)


def torch_step(teacher, student, tokens, dtype):
    """A function that makes one update of a transformers model and returns its losses before the update."""
    student.train()
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=1e-4, weight_decay=0.01, betas=(0.9, 0.95)
    )
    inputs = torch.from_numpy(tokens)

    def step():
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            with torch.no_grad():
                taught = teacher(inputs).logits[:, :-1].flatten(0, 1)
            logits = student(inputs).logits[:, :-1].flatten(0, 1)
        taught, logits = taught.float(), logits.float()
        logq, logp = (F.log_softmax(x / TEMPERATURE, -1) for x in (logits, taught))
        soft = TEMPERATURE**2 * F.kl_div(logq, logp, reduction="batchmean", log_target=True)
        hard = F.cross_entropy(logits, inputs[:, 1:].flatten())
        (WEIGHTS["soft"] * soft + WEIGHTS["hard"] * hard).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"soft": soft.item(), "hard": hard.item()}

    return step


def soft_and_hard(targets, share, top_k=None):
    """The terms hard, and soft against the teacher's logits or its TopK. targets, share: [b t]."""

    def compare(loss):
        return Partial(partial(loss, divergence="forward_kl"), temperature=TEMPERATURE)

    terms = {"hard": Term(Partial(hard_loss), share, WEIGHTS["hard"], targets)}
    if top_k is None:
        return terms | {"soft": Term(compare(soft_loss), share, WEIGHTS["soft"])}
    return terms | {"soft": Term(compare(top_k_loss), share, WEIGHTS["soft"], top_k)}


def jax_step(config, params, tokens, teach):
    """The same for our model. teach() -> the teacher's Outputs or TopK at all tokens."""
    tx = OPTIMIZER.make(1000)
    mask = np.ones(tokens.shape, bool)
    mask[:, -1] = False
    fixed = {
        "tokens": tokens.astype(np.int32),
        "targets": np.roll(tokens, -1, axis=1).astype(np.int32),
        "loss_mask": mask,
    }

    def loss_fn(params, batch, rng):
        hidden_btd, _ = hidden_states(config, params, batch["tokens"])
        student, taught = Outputs(hidden_btd, head_weight(config, params)), batch["taught"]
        share_bt = batch["loss_mask"] / batch["loss_mask"].sum()
        if isinstance(taught, Outputs):
            return mean_over_tokens(soft_and_hard(batch["targets"], share_bt), student, taught)
        return mean_over_tokens(soft_and_hard(batch["targets"], share_bt, taught), student)

    step = jax.jit(make_train_step(loss_fn, tx), donate_argnums=0)
    rng = jax.random.key(0)
    # A copy, because an update donates its state
    state = [TrainState.create(jax.tree.map(jnp.copy, params), tx)]

    def run():
        state[0], metrics = step(state[0], fixed | {"taught": teach()}, rng)
        jax.block_until_ready(state[0])
        return {name: float(metrics[name]) for name in WEIGHTS}

    return run


def teachers(config, params, tokens):
    """(a function that runs the teacher, one that returns its precomputed TopK)."""
    tokens, head = jnp.asarray(tokens, jnp.int32), head_weight(config, params)

    @jax.jit
    def hidden(params):
        return hidden_states(config, params, tokens)[0]

    flat = hidden(params).reshape(tokens.size, -1)
    cached = jax.device_get(top_k_logprobs(flat, head, K, TEMPERATURE))
    cached = jax.tree.map(lambda x: x.reshape(*tokens.shape, *x.shape[1:]), cached)
    return lambda: Outputs(hidden(params), head), lambda: cached


def check_losses(contestants, dtype, steps=2):
    """Compare the losses of some updates. Online losses must equal PyTorch's at each step: in float32 up to
    the order of sums (0.1%), in bfloat16 up to 3%. Before the first update the cached hard loss must too; the
    cached soft loss, over k + 1 buckets, must be positive and at most PyTorch's.
    """
    print(f"soft and hard loss, {steps} updates, {dtype}")
    found = {}
    for name, step in contestants.items():
        found[name] = [step() for _ in range(steps)]
        shown = (f"{losses['soft']:.4f} {losses['hard']:.4f}" for losses in found[name])
        print(name, *shown, sep=" | ", flush=True)
    close = dict(rtol=1e-3 if dtype == "float32" else 3e-2)
    wanted, online, cached = (found[name] for name in (TRANSFORMERS, ONLINE, CACHED))
    for ours, theirs in zip(online, wanted, strict=True):
        for name in WEIGHTS:
            np.testing.assert_allclose(ours[name], theirs[name], **close)
    np.testing.assert_allclose(cached[0]["hard"], wanted[0]["hard"], **close)
    assert 0 < cached[0]["soft"] <= wanted[0]["soft"]


def memory():
    """Print the temporary bytes of the dense loss and its gradient, beside those of one array of logits."""
    rows = []
    for v in (12288, 49152):
        for m in (512, 2048):
            float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
            student, teacher = (Outputs(float32((1, m, d)), float32((v, d))) for d in (288, 576))
            targets = jax.ShapeDtypeStruct((1, m), jnp.int32)

            def value(student, teacher, targets):
                terms = soft_and_hard(targets, jnp.ones(targets.shape))
                return mean_over_tokens(terms, student, teacher)[0]

            program = jax.jit(jax.grad(value)).lower(student, teacher, targets).compile()
            found = program.memory_analysis().temp_size_in_bytes
            rows.append([f"{v:,}", f"{m:,}", f"{4 * v * m / 2**20:,.0f}", f"{found / 2**20:,.0f}"])
    title = "the dense loss and its gradient, MiB"
    print_table(title, ["vocabulary", "tokens", "tokens x vocabulary x 4 B", "temporaries"], rows)


def useful_step_flops(teacher, student):
    """FLOPs of the student's forward and backward pass, and of the teacher's forward pass (a third as many
    per weight).
    """
    of_teacher, of_student = (
        useful_flops(config, LENGTH, trains_mtp=False) for config in (teacher, student)
    )
    return ROWS * LENGTH * (of_teacher / 3 + of_student)


def measure(dtype, rounds):
    """Print one table, for steps with matrix products in dtype."""
    tokens = np.random.default_rng(0).integers(0, 49152, (ROWS, LENGTH))
    scanned = dict(scan_layers=True, remat="selective", dtype=dtype)
    (teacher, teacher_config, teacher_params), (student, config, params) = smollm2(), smollm2_half()
    online, cached = teachers(
        dataclasses.replace(teacher_config, **scanned), teacher_params, tokens
    )
    ours = dataclasses.replace(config, **scanned), params, tokens
    contestants = {
        TRANSFORMERS: torch_step(teacher, student, tokens, dtype),
        ONLINE: jax_step(*ours, online),
        CACHED: jax_step(*ours, cached),
    }
    check_losses(contestants, dtype)
    seconds = interleave(contestants, rounds)
    bound = useful_step_flops(teacher_config, config) / peak_flops()
    seconds["online products at this CPU's best float32 rate"] = [bound]
    middle = medians(seconds)
    rows = [
        [
            name,
            f"{s:.2f}",
            f"{min(seconds[name]):.2f}",
            f"{middle[TRANSFORMERS] / s:.2f}",
            f"{s / middle[ONLINE]:.2f}",
        ]
        for name, s in middle.items()
    ]
    title = f"one update of {ROWS} x {LENGTH} tokens, {dtype}"
    print_table(title, ["", "s", "least s", "transformers / this", "this / online"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=dtypes, nargs="+", default=dtypes)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.memory:
        memory()
    else:
        for dtype in args.dtype:
            measure(dtype, args.rounds)


if __name__ == "__main__":
    main()
