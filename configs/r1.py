"""R1 as published: its four stages and their reward models, from DeepSeek-V3-Base.

python launch/train.py --config=configs/r1.py:stage=cold_start       # 1 -> Dev1
python launch/train.py --config=configs/r1.py:stage=reasoning        # 2 -> Dev2
python launch/generate.py --config=configs/r1.py:stage=rejection     # Dev2 answers; rules
python launch/generate.py --config=configs/r1.py:stage=judged        # or a judge check
python launch/train.py --config=configs/r1.py:stage=sft              # 3 -> Dev3
python launch/train.py --config=configs/r1.py:stage=helpfulness      # and stage=safety
python launch/train.py --config=configs/r1.py:stage=scenarios        # 4 -> R1

The numbers are from arXiv:2501.12948, section 3 and appendices B.3 and B.4. Each stage is a run of
its own.

Replace the paths by your own. /checkpoints/NAME is the params folder of a previous stage's run.
/data/NAME.jsonl has conversations, questions that name their language, or preferences. The judge is
a model that recipe="sft" trained on judgements. Its params folder needs a judge.json with the
max_completion_length for its questions.

Some values are not published, and are ours: the number of cold-start conversations, the steps of
stage 2 (published: until convergence), Adam's numbers, packing, the length of prompts, the length
of a judgement, the share of general prompts in a step, and the mesh. All stages use R1-Zero's
template.

A step of reinforcement here is one rollout, 16 of the paper's steps (see configs/r1_zero.py). So
stage 4 has 106 steps for the paper's 1,700. The last 25 have general prompts, for the paper's last
400.
"""

from collections.abc import Callable
from functools import partial

from ml_collections import ConfigDict

from configs import generate_r1_distill, models, r1_zero
from configs.common import stage_config

# Updates of one rollout
UPDATES = 16
# Tokens of a row, or of a completion
TOKENS = 32_768
# Published: "thousands" of conversations
COLD_START_TOKENS = 8000 * 5000
# Stage 3's conversations, of 5,355 tokens on average
SFT_TOKENS = 804_745 * 5355
# The most tokens of a judgement, as in the judge's judge.json
JUDGEMENT_TOKENS = 2048
PREFERENCES = {"helpfulness": 66_000, "safety": 106_000}


def get_config(arg=None):
    return stage_config(STAGES, arg, default="reasoning")


def _cold_start():
    return _fine_tuned("/data/r1_cold_start.jsonl", epochs=2, tokens=COLD_START_TOKENS)


def _sft():
    return _fine_tuned("/data/r1_sft.jsonl", epochs=2, tokens=SFT_TOKENS)


def _fine_tuned(path, *, epochs, tokens):
    c = ConfigDict(dict(recipe="sft", batch_size=128, sequence_length=TOKENS))
    c.num_steps = -(-epochs * tokens // (c.batch_size * TOKENS))
    c.init_from = "/checkpoints/DeepSeek-V3-Base"
    # 128 rows, each on eight chips, which are two hosts; one reader for each row
    c.update(_on_chips(fsdp=4, context=8))
    c.data = dict(path=path, template="r1_zero", num_held_out=512, readers=c.batch_size)
    c.accuracy = "math_verify"
    c.rewards = dict(math_verify=1.0, think_answer_format=1.0)
    c.answers = dict(num_prompts=64, max_completion_length=TOKENS, temperature=0.6, slots=1024)
    # final_fraction: the rate falls to 5e-6
    c.optimizer = dict(learning_rate=5e-5, schedule="cosine", final_fraction=0.1)
    c.eval_every = c.save_every = 10
    return c


def _reasoning():
    c = r1_zero.get_config()
    c.init_from = "/checkpoints/R1-Dev1"
    c.num_steps = 200
    # Half as many tokens on a device as R1-Zero's longest rows have: there is room, as in pre-training
    c.model.remat = "selective"
    # The same length from the first step to the last
    c.rollout = dict(c.rollout, max_completion_length=TOKENS)
    c.data.path = "/data/r1_reasoning.jsonl"
    # Section 3.2.1 adds it to the other rewards without a weight
    c.rewards.language_consistency = 1.0
    return c


def _rejection():
    c = generate_r1_distill.get_config()
    c.init_from = "/checkpoints/R1-Dev2"
    c.data = dict(path="/data/r1_reasoning.jsonl", template="r1_zero")
    c.sampling.temperature, c.sampling.top_p = 1.0, 1.0
    # Weight 0: measured only for keep.at_least, and not part of the sum
    c.rewards = dict(math_verify=1.0, think_answer_format=0.0, language_consistency=0.0)
    c.keep.at_least = dict(math_verify=1.0, think_answer_format=1.0, language_consistency=0.95)
    return c


def _judged():
    c = _rejection()
    c.data.path, c.accuracy = "/data/r1_unchecked.jsonl", "judge"
    # 128 chips of a v5p for each teacher, because the judge is on them too and is as large
    c.teacher_processes, c.mesh = 32, dict(fsdp=8, expert=16)
    judge = _reward("R1-judge") | dict(max_completion_length=JUDGEMENT_TOKENS)
    c.reward_models = {"judge": judge}
    c.rewards = dict(judge=1.0, think_answer_format=0.0, language_consistency=0.0)
    # 0.5 is the judge's score of the reference, see rewards.judge.Judge
    c.keep.at_least = dict(judge=0.5, think_answer_format=1.0, language_consistency=0.95)
    return c


def _reward_model(kind):
    c = ConfigDict(dict(recipe="reward_model", kind=kind, batch_size=256, sequence_length=8192))
    # One epoch
    c.num_steps = PREFERENCES[kind] // c.batch_size
    c.init_from = "/checkpoints/R1-Dev1"
    # 256 pairs or responses, each on four chips
    c.update(_on_chips(fsdp=8, context=4))
    c.data = dict(path=f"/data/r1_{kind}.jsonl", template="r1_zero", num_held_out=1024)
    c.optimizer = dict(learning_rate=6e-6)
    c.save_every = 50
    return c


def _scenarios():
    c = _reasoning()
    c.init_from = "/checkpoints/R1-Dev3"
    c.num_steps = 1700 // UPDATES
    # Section 3.2.2: higher temperatures made the completions of this stage incoherent
    c.rollout.temperature = 0.7
    # Section 3.2.2: more steps with preference rewards may lead to reward hacking
    c.general = dict(num_steps=400 // UPDATES, per_step=256, path="/data/r1_general.jsonl")
    c.general.rewards = dict(
        helpful=1.0, safe=1.0, think_answer_format=1.0, language_consistency=1.0
    )
    c.reward_models = {"helpful": _reward("R1-helpfulness"), "safe": _reward("R1-safety")}
    return c


def _reward(name):
    """Return a reward model or a judge in use: it reads 128 rows, or judges 128 pairs, at once."""
    return dict(path=f"/checkpoints/{name}", dtype="bfloat16", batch_size=128)


def _on_chips(fsdp, context):
    """Return the model, and a mesh of 1024 chips that splits the experts over 32 of them."""
    return dict(
        # The room for experts and remat are as in configs/pretrain_v3.py
        model=models.deepseek_v3() | dict(expert_buffer=1.25, remat="selective"),
        mesh=dict(data=1, fsdp=fsdp, expert=32, context=context),
    )


STAGES: dict[str, Callable[[], ConfigDict]] = {
    "cold_start": _cold_start,
    "reasoning": _reasoning,
    "rejection": _rejection,
    "judged": _judged,
    "sft": _sft,
    "helpfulness": partial(_reward_model, "helpfulness"),
    "safety": partial(_reward_model, "safety"),
    "scenarios": _scenarios,
}
