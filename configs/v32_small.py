"""From dense to sparse attention in miniature: pretrain_small.py's V3 becomes a V3.2.

python launch/train.py --config=configs/pretrain_small.py
python launch/train.py --config=configs/v32_small.py          # or configs/v32_small.py:seed=1
python launch/train.py --config=configs/v32_small.py --workdir=runs/v32_twin
    --config.stages.stage_2_sparse.indexer_loss=dense

The queries of the V3.2 attend to 128 keys that an indexer selects, in rows of 1024
(DeepSeek-V3.2-Exp, section 2.1). First only the indexers learn, from attention over all keys. Then
everything learns, from attention over the keys that they select.

The last command is the dense twin: the same updates on the same rows, with attention over all keys
to the end. Its indexers learn too. They change nothing else except the norm by which all gradients
are clipped together.
"""

from ml_collections import ConfigDict

from configs import models, pretrain_small
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    before = pretrain_small.get_config()
    long = before.stages.stage_2_long
    c = ConfigDict(dict(recipe="pretrain", seed=arg.seed))
    c.init_from = "runs/pretrain_small"
    c.model = models.deepseek_v3_2_mini() | dict(fp8=before.model.fp8)
    c.model.rope_scaling = long.rope_scaling
    c.data = before.data

    rows = dict(sequence_length=long.sequence_length, batch_size=4, bias_update_speed=0.0)
    # Modules of multi-token prediction have indexers too
    rows |= dict(mtp_weight=0.1, log_every=10)
    warm_up = dict(rows, trains="indexer", indexer_loss="dense", num_steps=60)
    warm_up["optimizer"] = dict(learning_rate=1e-3)
    # The rate at which the dense model ended, as published
    sparse = dict(rows, indexer_loss="sparse", num_steps=120)
    sparse["optimizer"] = long.optimizer
    sparse["balance_weight"] = long.balance_weight
    c.stages = {"stage_1_warm_up": warm_up, "stage_2_sparse": sparse}
    for stage in c.stages.values():
        stage.update(dict(eval_every=30, save_every=30))
    return c
