"""DeepSeek-V3's pre-training as published: 14.8T tokens, then contexts of 32K and 128K (arXiv:2412.19437,
section 4).

python launch/train.py --config=configs/pretrain_v3.py --distributed
python launch/plan.py --config=configs/pretrain_v3.py --topology=v5p:8x8x16       # does it fit?

config.data.sources are to be yours.

What is not published is ours: Adam's eps, the steps of the batch's growth, the mesh.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import batch_ramp, parse_arg, updates_until

TERA, GIGA = 10**12, 10**9
LENGTH = 4096
LAST_RATE = 7.3e-6


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = ConfigDict(dict(recipe="pretrain", seed=arg.seed))
    c.model = models.deepseek_v3() | dict(rope_scaling=None, initializer_range=0.006, fp8=True)
    c.data = dict(sources=("/data/text/1.0.0",), tokenizer="deepseek", fim_rate=0.1)
    c.mesh = dict(data=1, fsdp=32, expert=32)

    stages = batch_ramp(3072, 15360, quantum=3072, ramp_tokens=469 * GIGA, sequence_length=LENGTH)

    def after(tokens):
        return updates_until(tokens, stages, sequence_length=LENGTH)

    optimizer = dict(weight_decay=0.1, max_grad_norm=1.0, moment_dtype="bfloat16")
    ends = [2000, *map(after, (10 * TERA, 14_300 * GIGA, 14_633 * GIGA, 14_800 * GIGA))]
    lengths = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    kinds = (
        ("linear", 2.2e-4),
        ("constant", None),
        ("cosine", 2.2e-5),
        ("constant", None),
        ("constant", LAST_RATE),
    )
    phases = [dict(kind=k, steps=n, to=to) for (k, to), n in zip(kinds, lengths, strict=True)]
    pretrain = dict(
        sequence_length=LENGTH, batch_size=stages, num_steps=ends[-1], micro_batch_size=1024
    )
    pretrain |= dict(optimizer=optimizer | dict(phases=phases))
    pretrain |= dict(mtp_weight=((0, 0.3), (after(10 * TERA), 0.1)))
    pretrain |= dict(bias_update_speed=((0, 0.001), (after(14_300 * GIGA), 0.0)))
    c.stages = {"stage_1": pretrain}
    for name, length, rows in (("stage_2_32k", 32_768, 1920), ("stage_3_128k", 131_072, 480)):
        c.stages[name] = dict(
            sequence_length=length,
            batch_size=rows,
            num_steps=1000,
            optimizer=optimizer | dict(learning_rate=LAST_RATE),
            mtp_weight=0.1,
            bias_update_speed=0.0,
            rope_scaling=dict(models.YARN, mscale=1.0, mscale_all_dim=1.0),
        )
    for stage in c.stages.values():
        stage.update(dict(balance_weight=1e-4, log_every=10, eval_every=1000, save_every=1000))
    return c
