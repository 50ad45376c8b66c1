"""DeepSeek-V4-Flash at its published sizes: pre-training, and reinforcement of its base.

python launch/train.py --config=configs/v4_flash.py
python launch/plan.py --config=configs/v4_flash.py --topology=v5p:8x8x8            # does it fit?
python launch/plan.py --config=configs/v4_flash.py:recipe=grpo --topology=v5p:8x8x8

The network is arXiv:2606.19348's. The first stage of pre-training has rows of 4K tokens and dense
attention, in which indexers learn from the attention of their layers. Learning rates, the optimizer
of each parameter and the weights of the losses are the paper's. Set config.data.sources to your
data; with :recipe=grpo set config.init_from to V4-Flash-Base, and config.data.path to questions.

Some numbers are not published, and are ours: the rows of a batch, the steps of the warm-up, the
room for experts' tokens, and the mesh, of 512 chips. The reinforcement has the numbers of R1-Zero's
(configs/r1_zero.py): the paper's has several teachers, and is not here.

Matrix products are in bfloat16. The release's FP4 and FP8 weights are read, and written again by
launch/convert.py --like.
"""

from ml_collections import ConfigDict

from configs import models, r1_zero
from configs.common import parse_arg, updates_until

TERA = 10**12
LENGTH, ROWS = 4096, 3072


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, recipe="pretrain")
    c = {"pretrain": pretrain, "grpo": reinforce}[arg.recipe](arg.seed)
    # Room for a quarter more than a device's balanced share of tokens
    c.model.expert_buffer = 1.25
    return c


def pretrain(seed):
    """Return the first trillion tokens: rows of 4K, and dense attention."""
    c = ConfigDict(dict(recipe="pretrain", seed=seed))
    c.model = models.deepseek_v4_flash()
    c.mesh = dict(data=1, fsdp=16, expert=32)
    c.data = dict(sources=("/data/text/1.0.0",), tokenizer="deepseek", num_held_out=100_000)
    # One reader for each host of four chips
    c.data.readers = 128
    steps = updates_until(TERA, ((0, ROWS),), sequence_length=LENGTH)
    dense = dict(
        sequence_length=LENGTH,
        batch_size=ROWS,
        micro_batch_size=512,
        num_steps=steps,
        indexer_loss="dense",
        mtp_weight=0.3,
        balance_weight=1e-4,
        bias_update_speed=0.001,
        # Random routers give the busiest device up to twice its share, see configs/pretrain_v3.py
        expert_buffer=((0, 2.5), (1000, 1.25)),
    )
    phases = [
        dict(kind="linear", steps=2000, to=2.7e-4),
        dict(kind="constant", steps=steps - 2000),
    ]
    # Muon for matrices, AdamW for the rest
    muon = dict(kind="muon", momentum=0.95, moment_dtype="bfloat16", phases=phases)
    dense["optimizer"] = muon | dict(weight_decay=0.1, max_grad_norm=1.0)
    dense |= dict(log_every=10, eval_every=1000, save_every=1000)
    c.stages = dict(stage_1_dense=dense)
    return c


def reinforce(seed):
    """Return R1-Zero's reinforcement, of V4-Flash."""
    c = r1_zero.get_config(f"seed={seed}")
    c.init_from = "/checkpoints/DeepSeek-V4-Flash-Base"
    c.model = models.deepseek_v4_flash()
    c.share_prompts = False
    # An update is 512 rows of one completion, each on eight chips, in eight micro-batches
    c.mesh, c.micro_batches = dict(data=1, fsdp=2, expert=32, context=8), 8
    return c
