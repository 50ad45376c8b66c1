"""A training step against PyTorch, interleaved: 8 x 256 tokens, AdamW on float32 weights. Models:
SmolLM2-135M's shape, and two DeepSeek-V3s of 4 layers and 16 experts, four a token, with widths of 64 (tiny)
and 256 (small). bfloat16 means matrix products in bfloat16, in PyTorch by autocast.

python -m tests.benchmarks.train_step [--rounds 5] [--model smollm2 tiny_v3 small_v3] [--dtype float32]
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.benchmarks.peers import small_v3, smollm2, tiny_v3
from tests.benchmarks.timing import batch_of, interleave, medians, peak_flops, print_table

SIXTEEN = dict(num_hidden_layers=4, n_routed_experts=16, num_experts_per_tok=4)
PEERS = {
    "smollm2": smollm2,
    "tiny_v3": functools.partial(tiny_v3, **SIXTEEN),
    "small_v3": small_v3,
}
FORMS = [dict(scan_layers=True, remat=remat) for remat in ("none", "selective", "full")]
# The fastest form of a small model on XLA's CPU backend
FORMS.append(dict(scan_layers=False, remat="none"))
ROWS, LENGTH = 8, 256
OPTIMIZER = OptimizerSettings(learning_rate=1e-4, weight_decay=0.01)


def torch_step(model, tokens, dtype):
    """A function that makes one update of a transformers model."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, betas=(0.9, 0.95))
    inputs = torch.from_numpy(tokens)

    def step():
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            loss = model(inputs, labels=inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def jax_step(config, params, tokens):
    """A function that makes one update of ours."""
    tx = OPTIMIZER.make(1000)
    step = make_train_step(lambda params, batch, rng: next_token_loss(config, params, batch), tx)
    step, batch = jax.jit(step, donate_argnums=0), batch_of(tokens)
    rng, state = jax.random.key(0), [TrainState.create(params, tx)]

    def run():
        state[0], metrics = step(state[0], batch, rng)
        jax.block_until_ready((state[0], metrics))

    return run


def measure(title, peer, dtype, rounds):
    """Print one table for a peer of tests.benchmarks.peers."""
    model, config, params = peer
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, LENGTH))
    contestants = {"transformers": torch_step(model, tokens, dtype)}
    for form in FORMS:
        contestants["deepseek_jax, " + ", ".join(f"{k}={v}" for k, v in form.items())] = jax_step(
            dataclasses.replace(config, dtype=dtype, **form),
            jax.tree.map(jnp.copy, params),  # a copy, because an update donates its state
            tokens,
        )
    seconds = medians(interleave(contestants, rounds))
    flops = ROWS * LENGTH * useful_flops(config, LENGTH, trains_mtp=False)
    bound = seconds["products at this CPU's best float32 rate"] = flops / peak_flops()
    rows = [
        [
            name,
            f"{s:.2f}",
            f"{ROWS * LENGTH / s:.0f}",
            f"{seconds['transformers'] / s:.2f}",
            f"{bound / s:.0%}",
        ]
        for name, s in seconds.items()
    ]
    title = f"{title}, one update of {ROWS} x {LENGTH} tokens, {dtype}"
    print_table(title, ["", "s", "tokens/s", "ratio", "bound / s"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=PEERS, nargs="+", default=list(PEERS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    args = parser.parse_args()
    for name in args.model:
        for dtype in args.dtype:
            measure(name, PEERS[name](), dtype, args.rounds)


if __name__ == "__main__":
    main()
