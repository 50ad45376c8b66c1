"""Decoding against transformers.generate: same weights, same token counts, interleaved.

python -m tests.benchmarks.decode [--rounds 5] [--only NAME]
"""

import argparse
import dataclasses

import numpy as np
import torch

from deepseek_jax.rollout import generate
from tests.benchmarks.peers import small_v3, smollm2, tiny_v3
from tests.benchmarks.timing import interleave, medians

PROMPT, NEW = 64, 64
CASES = (
    ("smollm2", 1, "float32"),
    ("smollm2", 8, "float32"),
    ("smollm2", 8, "bfloat16"),
    ("smollm2", 32, "float32"),
    ("smollm2", 32, "bfloat16"),
    ("tiny_v3", 8, "float32"),
    ("tiny_v3", 8, "bfloat16"),
    ("small_v3", 8, "float32"),
)
MODELS = {"smollm2": smollm2, "tiny_v3": tiny_v3, "small_v3": small_v3}


def measure(name, batch_size, dtype, rounds):
    """[case, transformers tokens/s, ours, ratio] as strings; medians over rounds."""
    model, config, params = MODELS[name](getattr(torch, dtype))
    config = dataclasses.replace(config, dtype=dtype)
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, PROMPT))
    inputs = torch.from_numpy(prompts)

    def theirs():
        with torch.inference_mode():
            out = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                top_k=0,
                max_new_tokens=NEW,
                pad_token_id=0,
            )
        assert out.shape == (batch_size, PROMPT + NEW)

    def ours():
        out = generate(
            config, params, prompts.tolist(), max_completion_length=NEW, slots=batch_size
        )
        assert out.completion_mask.all()

    seconds = medians(interleave({"theirs": theirs, "ours": ours}, rounds))
    theirs, ours = (batch_size * NEW / seconds[who] for who in ("theirs", "ours"))
    return [
        f"{name} {dtype} batch {batch_size}",
        f"{theirs:.0f}",
        f"{ours:.0f}",
        f"{ours / theirs:.2f}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print(
        f"prompt {PROMPT}, {NEW} new tokens; case: transformers tokens/s, ours, ratio", flush=True
    )
    for case in CASES:
        if args.only in f"{case[0]} {case[2]} {case[1]}":
            print(" | ".join(measure(*case, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
