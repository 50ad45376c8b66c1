"""A run for --rehearse, of sizes that a TPU's kernels accept. It learns nothing useful.

python launch/train.py --config=configs/rehearsal.py:stage=pretrain --rehearse=v5p          # or sft, grpo
XLA_FLAGS=--xla_force_host_platform_device_count=8 python launch/train.py
    --config=configs/rehearsal.py:stage=grpo,mesh=context,fp8,selection --rehearse=tpu7x

The model has two layers in bfloat16, 16 heads of 128 numbers and latents of 128, and rows have
1,152 tokens. A mesh has eight devices along the axes fsdp, expert, and context or tensor.
"""

from ml_collections import ConfigDict

from configs import models
from configs.common import parse_arg

LENGTH = 1152
MESHES = {
    "none": {},
    "context": dict(fsdp=2, expert=2, context=2),
    "tensor": dict(fsdp=2, expert=2, tensor=2),
}


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, stage="pretrain", mesh="none", fp8=False, selection=False)
    stages = dict(pretrain=_pretrain, sft=_sft, grpo=_grpo)
    for name, allowed in dict(stage=list(stages), mesh=list(MESHES)).items():
        if arg[name] not in allowed:
            raise ValueError(
                f"config argument {name}={arg[name]!r} must be one of {', '.join(allowed)}"
            )
    c = ConfigDict(dict(recipe=arg.stage, seed=arg.seed))
    c.model = models.deepseek_v3_2_tiled() if arg.selection else models.deepseek_v3_tiled()
    c.model.fp8 = arg.fp8
    stages[arg.stage](c)
    c.mesh = MESHES[arg.mesh]
    return c


def _pretrain(c):
    c.model.update(vocab_size=264, num_nextn_predict_layers=1)
    c.data = dict(sources=("python",), tokenizer="bytes", num_held_out=2, eval_batches=2)
    stage = dict(
        sequence_length=LENGTH,
        batch_size=4,
        num_steps=1,
        mtp_weight=0.3,
        optimizer=dict(learning_rate=1e-3),
        log_every=1,
        eval_every=1,
        save_every=1,
    )
    whole = dict(stage, bias_update_speed=0.01, balance_weight=1e-4)
    c.stages = {"stage_1": whole}
    if "index_topk" in c.model:
        warm_up = dict(stage, trains="indexer", indexer_loss="dense", bias_update_speed=0.0)
        c.stages = {
            "stage_1_warm_up": warm_up,
            "stage_2_sparse": whole | dict(indexer_loss="sparse"),
        }


def _sft(c):
    _on_sums(c)
    c.update(num_steps=1, batch_size=4, sequence_length=LENGTH, eval_every=1, log_every=1)
    c.answers = dict(num_prompts=8, max_completion_length=112, temperature=1.0, slots=8)


def _grpo(c):
    _on_sums(c)
    c.update(num_steps=1, prompts_per_step=4, group_size=2)
    c.rollout = dict(max_prompt_length=16, max_completion_length=112, temperature=1.0, slots=8)
    c.loss = dict(loss_type="grpo", clip_eps=0.2, kl_coef=0.0)


def _on_sums(c):
    # The tokenizer has 21 characters, but tensor=2 splits only an even number
    c.model.vocab_size = 22
    c.base = dict(num_documents=2000, sequence_length=LENGTH, batch_size=4, num_steps=1)
    c.base.optimizer = dict(learning_rate=1e-3)
    c.data = dict(task="arithmetic", num_held_out=8)
    c.rewards = dict(correct=1.0)
    c.optimizer = dict(learning_rate=1e-4)
