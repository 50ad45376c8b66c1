"""R1 in miniature: R1-Zero and R1's four stages, from one tiny V3 that mixes two languages.

python launch/train.py --config=configs/r1_small.py          # or configs/r1_small.py:seed=1
python launch/train.py --config=configs/r1_small.py:last=distill     # distillation as the last stage
python launch/train.py --config=configs/r1_small.py:last=both        # both forms of it, beside each other
python launch/train.py --config=configs/r1_small.py:quick     # every stage, short: no test of findings
"""

from ml_collections import ConfigDict

from configs import models, r1_zero_small
from configs.common import parse_arg

# Tokens of a completion, and of a row
LENGTH = 64
# Forms of the last stage
LAST = ("scenarios", "distill", "both")
GENERAL_REWARDS = dict(
    helpfulness_model=1.0, safety_model=1.0, think_answer_format=1.0, language_consistency=1.0
)


def get_config(arg=None):
    arg = parse_arg(arg, seed=0, last="scenarios", quick=False)
    if arg.last not in LAST:
        raise ValueError(f"config argument last={arg.last!r} must be one of {', '.join(LAST)}")
    zero = r1_zero_small.get_config(arg=f"seed={arg.seed}")
    c = ConfigDict(dict(recipe="r1", world="bilingual", seed=arg.seed))
    c.model = models.deepseek_v3_tiny(vocab_size=r1_zero_small.VOCAB_SIZE)
    c.base = zero.base
    names = "num_steps prompts_per_step group_size accuracy rewards rollout loss optimizer"
    c.zero = {name: zero[name] for name in (*names.split(), "save_every", "log_every")}

    # The numbers of steps and the share of requests were chosen on seed 0, after three trials on it
    samples = dict(num_prompts=1000, samples_per_prompt=4, temperature=1.0)
    samples["max_completion_length"] = LENGTH
    c.traces = dict(samples, samples_per_prompt=8, max_per_prompt=1)
    rows = dict(batch_size=16, sequence_length=LENGTH, eval_every=20, log_every=5)
    c.cold_start = dict(rows, num_steps=60, data=dict())
    c.cold_start.optimizer = dict(learning_rate=1e-3, schedule="cosine", warmup_steps=5)

    c.reasoning = c.zero.copy_and_resolve_references()
    c.reasoning.num_steps = 100
    c.reasoning.rewards.language_consistency = 1.0
    c.reasoning.loss.kl_coef = 0.001
    c.reasoning.reference_every = 20

    c.rejection = dict(samples, max_per_prompt=2)
    c.judged = dict(samples, num_prompts=256, max_per_prompt=1)
    c.sft = dict(rows, num_steps=300, data=dict(num_requests=1200))
    c.sft.optimizer = dict(learning_rate=2e-3, schedule="cosine", warmup_steps=5)

    pairs = dict(
        num_steps=200,
        batch_size=32,
        sequence_length=LENGTH,
        log_every=10,
        data=dict(template="r1_zero", num_train=4096, num_held_out=512),
        optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=10),
    )
    c.judge = dict(pairs, num_steps=300)
    c.judge.data.num_train, c.judge.optimizer.learning_rate = 8192, 3e-3
    c.helpfulness_model = dict(pairs, kind="helpfulness")
    c.safety_model = dict(pairs, kind="safety", num_steps=100)

    if arg.last != "distill":
        c.scenarios = _later(c, num_steps=80)
        # The last 20 of 80 steps; published: 400 of 1,700
        c.scenarios.general = dict(num_steps=20, per_step=8, rewards=GENERAL_REWARDS)
    if arg.last != "scenarios":
        _distill(c)
    c.evaluation = dict(num_puzzles=128, num_requests=96, samples=16, temperature=1.0)
    c.evaluation.max_completion_length = LENGTH
    if arg.quick:
        _shorten(c)
    return c


def _shorten(c):
    """Use fewer steps and samples, and a base that Muon trains faster.

    A run then shows all stages and their page in minutes. Its scores are too uncertain to say which
    of the paper's findings hold.
    """
    c.base.num_steps = 1000
    c.base.optimizer.kind, c.base.optimizer.learning_rate = "muon", 6e-3
    for stage in {"zero", "reasoning", "scenarios"} & set(c):
        c[stage].num_steps = 40
        c[stage].optimizer.learning_rate = 3e-4
    c.zero.num_steps = 80
    if "scenarios" in c:
        c.scenarios.general.num_steps = 10
    c.traces.num_prompts, c.rejection.num_prompts, c.judged.num_prompts = 250, 500, 64
    c.cold_start.num_steps, c.sft.num_steps = 40, 120
    for model in ("judge", "helpfulness_model", "safety_model"):
        c[model].num_steps = 60
        c[model].data.num_train, c[model].data.num_held_out = 2048, 256
    c.evaluation.num_puzzles, c.evaluation.num_requests, c.evaluation.samples = 64, 48, 4


def _distill(c):
    """Add V4's last stage, on as many samples as stage 4.

    Its specialists have 40 steps, and the student 40. The reward models score as many samples too:
    10 steps with only general questions have as many as 20 steps in which half are general.
    """
    c.reasoning_teacher = _later(c, num_steps=30)
    c.general_teacher = _later(c, num_steps=10)
    c.general_teacher.accuracy, c.general_teacher.rewards = "helpfulness_model", GENERAL_REWARDS
    c.distilled = dict(num_steps=40, group_size=8, prompts_per_step=dict(reasoning=8, general=8))
    c.distilled.teachers = dict(
        reasoning=dict(task="reasoning", stage="reasoning_teacher", weight=1.0),
        general=dict(task="general", stage="general_teacher", weight=1.0),
    )
    c.distilled.rollout = c.reasoning.rollout.copy_and_resolve_references()
    # Chosen after a trial on seed 0: with a constant 5e-4 the KL did not fall
    c.distilled.optimizer = dict(learning_rate=1e-4, schedule="cosine")
    c.distilled.save_every, c.distilled.log_every = 40, 10


def _later(c, num_steps):
    """Return the config of a stage of reinforcement after Dev3."""
    block = c.reasoning.copy_and_resolve_references()
    block.num_steps, block.rollout.temperature = num_steps, 0.7
    return block
