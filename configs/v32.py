"""DeepSeek-V3.2's continued training as published: from dense to sparse attention, in two stages.

python launch/train.py --config=configs/v32.py
python launch/plan.py --config=configs/v32.py --topology=v5p:8x8x16       # does it fit?

The numbers are from the paper of DeepSeek-V3.2-Exp, section 2.1. Training starts from a dense
checkpoint with a context of 128K: the base of V3.1-Terminus, which has V3's architecture. Set
config.init_from to this checkpoint, and config.data.sources to your data.

Some numbers are not published, and are ours: Adam's numbers, the weights of the losses of
multi-token prediction and of balance (all as in V3's own long-context stages), and the mesh, of
1024 chips.
"""

from ml_collections import ConfigDict

from configs import models, pretrain_v3
from configs.common import parse_arg

LENGTH = 131_072


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, fp8=False)
    c = ConfigDict(dict(recipe="pretrain", seed=arg.seed))
    c.init_from = "/checkpoints/DeepSeek-V3.1-Terminus-Base"
    c.model = models.deepseek_v3_2() | dict(fp8=arg.fp8, expert_buffer=1.25)
    before = pretrain_v3.get_config("context=128k")
    c.data = before.data
    # One reader for each row of a micro-batch
    c.data.readers = 16
    c.mesh = dict(data=1, expert=16, context=64)

    long = before.stages.stage_3_128k
    rows = dict(sequence_length=LENGTH, micro_batch_size=16, mtp_weight=long.mtp_weight)
    rows |= dict(bias_update_speed=0.0, log_every=10, eval_every=1000, save_every=500)
    warm_up = dict(rows, trains="indexer", indexer_loss="dense", num_steps=1000, batch_size=16)
    warm_up["optimizer"] = pretrain_v3.OPTIMIZER | dict(learning_rate=1e-3)
    sparse = dict(rows, indexer_loss="sparse", num_steps=15_000, batch_size=480)
    sparse["optimizer"] = pretrain_v3.OPTIMIZER | dict(learning_rate=pretrain_v3.LAST_RATE)
    sparse["balance_weight"] = long.balance_weight
    c.stages = {"stage_1_warm_up": warm_up, "stage_2_sparse": sparse}
    return c
