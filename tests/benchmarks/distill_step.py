"""A distillation step against PyTorch: SmolLM2-135M's shape teaches one of half its width, 4 x 128 tokens,
soft targets at temperature 2 and hard ones, AdamW on float32 weights, interleaved. bfloat16 is that of
products: ours, and PyTorch's autocast.

python -m tests.benchmarks.distill_step [--rounds 15] [--dtype float32 bfloat16]
python -m tests.benchmarks.distill_step --memory     # temporary bytes of the loss alone: nothing is timed
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill.logit_distillation import dense_distillation, top_k_distillation
from deepseek_jax.distill.terms import token_mean
from deepseek_jax.distill.top_k import top_k_logprobs
from deepseek_jax.models import head_weight, hidden_states
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.step import make_train_step
from tests.benchmarks.peers import smollm2, smollm2_half
from tests.benchmarks.timing import interleave, medians, peak_flops, print_table

ROWS, LENGTH, TEMPERATURE, K = 4, 128, 2.0, 64
WEIGHTS = {"soft": 0.5, "hard": 0.5}
KIND = dict(divergence="forward_kl", temperature=TEMPERATURE)
TRANSFORMERS, ONLINE, CACHED = "transformers", "teacher online", f"top {K} cached"
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, weight_decay=0.01)


def torch_step(teacher, student, tokens, dtype):
    """A function that makes one update of a transformers model, and says its losses before."""
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


def jax_step(config, params, tokens, teach, loss):
    """The same of ours. teach() -> what loss(hidden, head, targets, **taught) takes of the teacher."""
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
        hidden_md = hidden_btd.reshape(-1, hidden_btd.shape[-1])
        targets_m, head = batch["targets"].reshape(-1), head_weight(config, params)
        mask_m = batch["loss_mask"].reshape(-1)
        weights = [weight * mask_m / mask_m.sum() for weight in WEIGHTS.values()]
        taught = batch["taught"] | KIND
        total, soft_m, hard_m, *_ = loss(hidden_md, head, targets_m, weights=weights, **taught)
        terms = {"soft": soft_m, "hard": hard_m}
        return total.sum(), {name: token_mean(x, mask_m, mask_m.sum()) for name, x in terms.items()}

    step = jax.jit(make_train_step(loss_fn, tx), donate_argnums=0)
    rng = jax.random.key(0)
    state = [TrainState.create(jax.tree.map(jnp.copy, params), tx)]  # an update uses its own up

    def run():
        state[0], metrics = step(state[0], fixed | {"taught": teach()}, rng)
        jax.block_until_ready(state[0])
        return {name: float(metrics[name]) for name in WEIGHTS}

    return run


def teachers(config, params, tokens):
    """(a function that runs the teacher, one that has its k likeliest tokens at hand)."""
    tokens, head = jnp.asarray(tokens, jnp.int32), head_weight(config, params)

    @jax.jit
    def hidden(params):
        hidden_btd, _ = hidden_states(config, params, tokens)
        return hidden_btd.reshape(-1, hidden_btd.shape[-1])

    def online():
        return {"teacher": hidden(params), "teacher_head": head}

    cached = jax.device_get(top_k_logprobs(hidden(params), head, K, TEMPERATURE))
    return online, lambda: {"teacher": cached}


def check_losses(contestants, dtype, steps=2):
    """Some updates of each: online losses have to be those of PyTorch, step by step, in float32 up to float32
    products in another order, in bfloat16 up to 3%; before its first update a cache's hard loss is theirs as
    well, up to as much, and its soft one, which sees k + 1 buckets, no more than theirs.
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
    """Temporary bytes of the dense loss with its gradient, beside those of one array of all its logits."""
    rows = []
    for v in (12288, 49152):
        for m in (512, 2048):
            shapes = (m, 288), (v, 288), (m,), (m, 576), (v, 576)
            dtypes = [jnp.int32 if len(shape) == 1 else jnp.float32 for shape in shapes]
            arguments = map(jax.ShapeDtypeStruct, shapes, dtypes)

            def value(hidden, head, *rest):
                weights = [jnp.ones(len(hidden))] * 2
                total, *_ = dense_distillation(hidden, head, *rest, weights, **KIND)
                return total.sum()

            program = jax.jit(jax.grad(value, (0, 1))).lower(*arguments).compile()
            found = program.memory_analysis().temp_size_in_bytes
            rows.append([f"{v:,}", f"{m:,}", f"{4 * v * m / 2**20:,.0f}", f"{found / 2**20:,.0f}"])
    title = "the dense loss and its gradient, MiB"
    print_table(title, ["vocabulary", "tokens", "tokens x vocabulary x 4 B", "temporaries"], rows)


def useful_step_flops(teacher, student):
    """Those of the student, forward and backward, and of the teacher's forward, a third of as much."""
    of_teacher, of_student = (
        useful_flops(config, LENGTH, trains_mtp=False) for config in (teacher, student)
    )
    return ROWS * LENGTH * (of_teacher / 3 + of_student)


def measure(dtype, rounds):
    """Print one table, of steps whose products are in dtype."""
    tokens = np.random.default_rng(0).integers(0, 49152, (ROWS, LENGTH))
    scanned = dict(scan_layers=True, remat="selective", dtype=dtype)
    (teacher, teacher_config, teacher_params), (student, config, params) = smollm2(), smollm2_half()
    online, cached = teachers(
        dataclasses.replace(teacher_config, **scanned), teacher_params, tokens
    )
    ours = dataclasses.replace(config, **scanned), params, tokens
    contestants = {
        TRANSFORMERS: torch_step(teacher, student, tokens, dtype),
        ONLINE: jax_step(*ours, online, dense_distillation),
        CACHED: jax_step(*ours, cached, top_k_distillation),
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
