"""An ablation of distillation: students that differ only in their loss, next to reinforcement.

python launch/train.py --config=configs/distill_study.py          # or configs/distill_study.py:seed=1
python launch/sweep.py --config=configs/distill_study.py --sweep=configs/sweeps/seeds.py

The students have one teacher, one start and equally many tokens. For comparison, the same start is
reinforced.
"""

from configs import distill_small, models, r1_zero_small
from configs.common import parse_arg

# Batches of every distilled student; all batches have one size
NUM_STEPS = 250
SOFT_HARD = dict(soft=0.5, hard=0.5)


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = distill_small.get_config(f"seed={arg.seed}")
    c.teacher, c.text.num_prompts = distill_small.made_teacher(num_requests=0), 512
    del c.tasks["requests"]
    c.starts = {"qwen": distill_small.start(models.qwen2_tiny(distill_small.VOCAB_SIZE))}
    arms: dict[str, dict[str, object]] = {
        "soft_hard": dict(weights=SOFT_HARD),
        "hard": dict(weights=dict(hard=1.0)),
        "features": dict(weights=SOFT_HARD | dict(hidden=0.1, relations=0.1)),
        "top_8": dict(weights=SOFT_HARD, top_k=8),
        "top_32": dict(weights=SOFT_HARD, top_k=32),
        "on_policy": dict(weights=dict(on_policy=1.0), temperature=1.0),
    }
    arms["on_policy"]["on_policy"] = dict(
        prompts=20, max_completion_length=48, divergence="reverse_kl", slots=20
    )
    c.students = {
        name: distill_small.student("qwen", num_steps=NUM_STEPS, **loss)
        for name, loss in arms.items()
    }
    c.reinforced = dict(reinforcement=reinforcement(arg.seed))
    c.comparisons = {
        "soft and hard targets against hard alone": ("soft_hard", "hard"),
        "with features against without": ("features", "soft_hard"),
        "distilled against reinforcement alone": ("soft_hard", "reinforcement"),
        "on-policy against offline": ("on_policy", "soft_hard"),
        "top 8 of a cache against the teacher at hand": ("top_8", "soft_hard"),
        "top 32 of a cache against the teacher at hand": ("top_32", "soft_hard"),
    }
    return c


def reinforcement(seed):
    """Return R1-Zero from the same start, with as much compute as a distilled student."""
    zero = r1_zero_small.get_config(f"seed={seed}")
    names = "prompts_per_step group_size accuracy rewards rollout loss optimizer".split()
    how = {name: zero[name] for name in names}
    # 75 steps cost 0.94 of a distilled student's compute; 110 steps brought it no further.
    # log_every=1, because compute is summed over logged steps
    how.update(start="qwen", num_steps=75, prompts_per_step=32, save_every=25, log_every=1)
    how["rollout"].slots = 256
    return how
