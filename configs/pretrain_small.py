"""V3's pre-training in miniature: MLA, group-limited experts, multi-token prediction and FP8.

python launch/train.py --config=configs/pretrain_small.py          # or configs/pretrain_small.py:seed=1
python launch/train.py --config=configs/pretrain_small.py:optimizer=muon

A long-context stage follows. The data are bytes of the source code of this Python installation, and
of sums.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import batch_ramp, parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, fp8=True, optimizer="adamw")
    c = ConfigDict(dict(recipe="pretrain", seed=arg.seed))
    c.model = models.deepseek_v3_mini() | dict(fp8=arg.fp8)
    c.data = dict(
        sources=("python", "arithmetic"), weights=(1.0, 3.0), tokenizer="bytes", fim_rate=0.1
    )
    c.data.num_held_out, c.data.eval_batches = 32, 16

    rows = dict(sequence_length=256)
    sizes = batch_ramp(8, 16, quantum=8, ramp_tokens=300_000, **rows)
    # V3's schedules (section 4.2) in 400 updates: the learning rate and the MTP weight fall
    # together, and the bias stops later
    short = dict(
        rows,
        batch_size=sizes,
        num_steps=400,
        bias_update_speed=((0, 0.01), (380, 0.0)),
        mtp_weight=((0, 0.3), (270, 0.1)),
    )
    phases = [
        dict(kind="linear", steps=30, to=2e-3),
        dict(kind="constant", steps=240),
        dict(kind="cosine", steps=100, to=2e-4),
        dict(kind="constant", steps=30),
    ]
    short["optimizer"] = dict(phases=phases, weight_decay=0.1, moment_dtype="bfloat16")
    yarn = dict(models.YARN, factor=4.0, original_max_position_embeddings=256)
    long = dict(
        sequence_length=1024,
        batch_size=4,
        num_steps=40,
        bias_update_speed=0.0,
        mtp_weight=0.1,
        rope_scaling=dict(yarn, mscale=1.0, mscale_all_dim=1.0),
        optimizer=dict(learning_rate=2e-4, weight_decay=0.1, moment_dtype="bfloat16"),
    )
    c.stages = {"stage_1": short, "stage_2_long": long}
    for stage in c.stages.values():
        if arg.optimizer != "adamw":
            # The momentum of DeepSeek-V4 (arXiv:2606.19348)
            stage.optimizer.update(kind=arg.optimizer, momentum=0.95)
        stage.update(dict(balance_weight=1e-4, log_every=10, eval_every=100, save_every=100))
    return c
