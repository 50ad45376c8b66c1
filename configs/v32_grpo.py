"""DeepSeek-V3.2's reinforcement: GRPO, with the changes that keep it stable at scale.

python launch/train.py --config=configs/v32_grpo.py
python launch/plan.py --config=configs/v32_grpo.py --topology=v5p:8x8x8       # does it fit?

It follows arXiv:2512.02556, section 3.1. Replace the paths by your own, see configs/r1.py.
Reasoning and general questions are learned in one stage. A judge takes the place of the paper's
generative reward model, which has rubrics for each question.

The changes that `stabilise` makes are published, but their numbers are not: they are ours. The
other numbers are the same as in R1's last stage, except the mesh: 512 chips, half of R1's.
"""

from configs import models, r1
from configs.common import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, seed=0)
    c = r1.get_config(f"stage=scenarios,seed={arg.seed}")
    c.init_from = "/checkpoints/DeepSeek-V3.2-SFT"
    c.model = models.deepseek_v3_2() | dict(expert_buffer=1.25)
    # An update is 512 rows of one completion, each on eight chips, in eight micro-batches
    c.mesh, c.micro_batches = dict(data=1, fsdp=2, expert=32, context=8), 8
    # In float32 the arrays that a rollout does not read would take a sixth of the chips' memory
    c.optimizer.update(moment_dtype="bfloat16", moment_memory="host")
    c.update(reference_dtype="bfloat16", reference_memory="host")
    c.data.path, c.data.template = "/data/v32_questions.jsonl", "chat"
    c.rewards = dict(math_verify=1.0, language_consistency=1.0)
    c.general = dict(num_steps=c.num_steps, per_step=256, path="/data/v32_general.jsonl")
    c.general.rewards = dict(judge=1.0, language_consistency=1.0)
    # Two judgements on each chip at a time
    judge = dict(path="/checkpoints/V3.2-judge", dtype="bfloat16", batch_size=1024)
    c.reward_models = dict(judge=judge | dict(max_completion_length=r1.JUDGEMENT_TOKENS))
    # Eight slots a chip: the caches of all 8,192 completions would fill its memory
    c.rollout.temperature, c.rollout.slots = 1.0, 4096
    stabilise(c, top_k=64)
    return c


def stabilise(c, top_k):
    """Set the changes that V3.2 makes to GRPO, in a GRPO config.

    Args:
        c: The ConfigDict, changed in place.
        top_k: The most tokens that a token is drawn from. V3.2's sampling mask consists of these
            candidates.
    """
    # Advantages are rewards minus the mean of their group. The KL has the gradient that it would
    # have under the policy's own samples
    c.loss.update(normalize_std=False, unbiased_kl=True)
    # A completion with a negative advantage teaches nothing once the policy has moved away from it
    # by this many nats a token
    c.loss.off_policy_limit = 0.5
    # Mathematics does better with a weak KL
    c.kl_weights = dict(reasoning=0.1)
    # Updates use the experts that the sampler chose, and the candidates from which it drew each
    # token
    c.keep_routing = True
    c.rollout.update(top_p=0.95, top_k=top_k)
