"""How far sampler and update are apart in bfloat16, by the number of layers.

python -m tests.benchmarks.sampler_gap

V3 with tiny matrices and V3's routing (8 of 256 experts, 4 of 8 groups), of 4 to 16 layers and random
weights, samples 8 completions of 64 tokens. The gap is the mean |log-probability under the update - that of
the sampler|, in nats a token; with `keep_routing` the update takes the experts that the sampler chose. The
last row is what the least squares line through the logarithms says of V3's 61 layers.
"""

import functools

import jax
import numpy as np

from configs import models
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.models import build_model, random_params
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.kept import rows_of

DEPTHS, PUBLISHED = (4, 8, 16), 61
PROMPTS, PROMPT, COMPLETION = 8, 16, 64
ROUTING = dict(n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4)
SIZES = ROUTING | dict(routed_scaling_factor=2.5, dtype="bfloat16", scan_layers=True)
# V3's, and one whose logits are as sharp as a trained tiny model's
INITIALIZERS = 0.02, 0.1


def gaps(layers, initializer_range):
    """The mean gap of one model, with routers that choose anew, and with the sampler's experts."""
    own = dict(num_hidden_layers=layers, initializer_range=initializer_range)
    config = build_model(models.deepseek_v3_tiny(64) | SIZES | own)
    params, rng = random_params(config), np.random.default_rng(0)
    prompts = rng.integers(0, 64, (PROMPTS, PROMPT)).tolist()
    log = RolloutLog()
    log.keeps_routing = True
    rollout = generate(
        config, params, prompts, max_completion_length=COMPLETION, slots=PROMPTS, log=log
    )
    batch = {
        "prompt_ids": np.int32(prompts),
        "prompt_mask": np.ones((PROMPTS, PROMPT), bool),
        "completion_ids": np.asarray(rollout.completion_ids),
        "completion_mask": np.asarray(rollout.completion_mask),
    }
    rows = np.arange(PROMPTS)
    kept = rows_of(log.token_choices, rows, rows, PROMPT, COMPLETION)
    score = jax.jit(functools.partial(completion_logprobs, config))
    for own in (batch, batch | kept):
        logprobs_bt = score(params, own)[0]
        yield float(np.abs(logprobs_bt - rollout.sampler_logprobs).mean())


def main():
    print(
        "| initializer_range | layers | routers choose anew | `keep_routing` |\n|---|---|---|---|"
    )
    for initializer_range in INITIALIZERS:
        found = np.array([list(gaps(layers, initializer_range)) for layers in DEPTHS])
        slope, start = np.polyfit(np.log(DEPTHS), np.log(found), 1)
        said = np.exp(start + slope * np.log(PUBLISHED))
        rows = dict(zip(DEPTHS, found, strict=True)) | {f"{PUBLISHED}, by the line": said}
        for layers, pair in rows.items():
            print(f"| {initializer_range} | {layers} | {pair[0]:.1e} | {pair[1]:.1e} |")


if __name__ == "__main__":
    main()
