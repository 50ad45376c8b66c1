"""The plain runs, at toy size: --config=tests/equivalence/toy.py:run=NAME,work=FOLDER."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import grpo_small, pretrain_small
from configs.common import parse_arg

FOLDER = Path(__file__).parent
ROWS = dict(hidden_size=32, num_attention_heads=4, q_lora_rank=16, kv_lora_rank=16)
ROWS |= dict(qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, initializer_range=0.1)
# Every fourth token ends a turn: completions have many lengths
ENDS = tuple(range(0, 264, 4))
# Clipped to this norm, gradients are far below Adam's epsilon of 1e-8: what is left of AdamW is gradient
# descent by steps of norm learning_rate / 1e4. Adam would make whole steps of rounding
CLIPPED = 1e-12
DESCENT = dict(kind="adamw", learning_rate=2e3, b1=0.0, max_grad_norm=CLIPPED)


def get_config(arg=None):
    """work: the folder of runs.write_inputs."""
    arg = parse_arg(arg, run="pretrain", work="")
    runs = dict(pretrain=pretrain, rows=rows, grpo=grpo, turn=turn, talk=talk)
    return runs[arg.run](Path(arg.work))


def pretrain(work):
    """Latent attention, a dense layer, two of experts, and multi-token prediction."""
    c = pretrain_small.get_config("fp8=False")
    sizes = dict(intermediate_size=64, moe_intermediate_size=32)
    c.model.update(ROWS | sizes | dict(eos_token_id=ENDS))
    # Documents of up to 30 bytes: none is long enough to measure drafts on
    c.data = dict(sources=(str(work / "texts.jsonl"),), num_held_out=60, eval_batches=2, readers=2)
    steps = dict(num_steps=4, save_every=1, eval_every=2, log_every=1, checkpoints=dict(keep=9))
    rows = dict(sequence_length=32, batch_size=8, balance_weight=1e-2, mtp_weight=0.3)
    c.stages = {"stage": steps | rows | dict(bias_update_speed=0.01, optimizer=DESCENT)}
    return c


def rows(work):
    """pretrain on documents of 8 tokens, all 256 of them in each update, two a row."""
    c = pretrain(work)
    c.data.update(sources=(str(work / "even.jsonl"),), fim_rate=0.0, readers=1)
    c.stages.stage.update(sequence_length=16, batch_size=128, micro_batch_size=8)
    return c


def grpo(work):
    """Two updates a step, from what pretrain left, by a reward of all texts."""
    c = grpo_small.get_config()
    c.unlock()
    del c.base, c.model
    c.update(
        init_from=str(work / "start"), num_steps=3, prompts_per_step=8, group_size=4, minibatches=2
    )
    c.data.num_held_out = 8
    c.rewards = ConfigDict({f"{FOLDER / 'own.py'}:odd": 1.0}, allow_dotted_keys=True)
    c.rollout = dict(max_prompt_length=32, max_completion_length=8, slots=8)
    c.loss = dict(kl_coef=0.1, importance_cap=2.0)
    c.update(optimizer=DESCENT, save_every=1, checkpoints=dict(keep=9), kept_groups=8)
    c.eval_every = 0
    return c


def turn(work):
    """grpo in conversations of one turn, with an environment that is never asked for a reply."""
    c = grpo(work)
    c.environment, c.conversation = f"{FOLDER / 'own.py'}:Silent", dict(turns=1)
    return c


def talk(work):
    """grpo in conversations of up to four turns, with an environment whose replies come late by chance."""
    c = grpo(work)
    c.environment = f"{FOLDER.parent / 'rollout/files/replies.py'}:Replies"
    c.conversation = dict(turns=4, turn_length=9, call_steps=2)
    c.rewards, c.accuracy = dict(Replies=1.0), "Replies"
    c.rollout.max_completion_length = 48
    return c
