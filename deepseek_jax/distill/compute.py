"""Floating-point operations that a student costs: its training, and the teacher's forward passes for it.

Not counted: the start, which compared students share, and the teacher's own training, as in the paper's
comparison (arXiv:2501.12948, section 4.1). For a distilled student padding counts, because it is computed.
For a reinforced one only the prompts' padding counts, so a comparison favours reinforcement.
"""

from pathlib import Path

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill.settings import CROSS
from deepseek_jax.models import ModelConfig
from deepseek_jax.training.metrics import read_metrics

# The share of the forward pass in both passes: backward, each product has two, one for either factor
FORWARD = 1 / 3


def distilled(
    student, policy: ModelConfig, teacher: ModelConfig | None, *, texts: int, answered: int
):
    """Operations of a distilled student: float.

    student: StudentSettings. teacher: None for a student without one. texts: size of the training set.
    answered: tokens that the teacher sampled to write it.
    """
    loss, length = student.loss, student.sequence_length
    frozen = student.adapter is not None
    own, taught = useful_flops(policy, length, trains_mtp=False, frozen=frozen), 0.0
    if teacher is not None:
        taught = FORWARD * useful_flops(teacher, length, trains_mtp=False)
    total, rows = 0.0, student.num_steps * student.batch_size
    if loss.learns_texts():
        online = loss.needs("hidden", "relations", *CROSS)
        # Soft targets from a cache cost one teacher pass over the texts (below), others one at each update
        online |= loss.needs("soft") and loss.top_k is None
        total += rows * length * (own + online * taught) + answered * taught
        total += (loss.top_k is not None) * texts * length * taught
    if loss.on_policy is not None:
        rows = student.num_steps * loss.on_policy.prompts
        sampled = rows * loss.on_policy.max_completion_length
        sampling = FORWARD * useful_flops(policy, length, trains_mtp=False)
        total += rows * length * (own + taught) + sampled * sampling
    return total


def reinforced(settings, policy: ModelConfig, metrics_path: Path, phase: str):
    """Operations of a reinforced student, for reading prompts, sampling and training: float.

    settings: ReinforceSettings with log_every=1. metrics_path: of the run that has this phase. Old
    log-probabilities cost one more forward pass over the batch, and so do the reference's, where the settings
    need them.
    """
    length = settings.rollout.max_prompt_length + settings.rollout.longest()
    records = read_metrics(metrics_path, phase)
    names = ("tokens", "prefilled_positions", "sampled_tokens")
    tokens, prefilled, sampled = (sum(record[name] for record in records) for name in names)
    learned = tokens + prefilled
    scored = len(settings.scored())
    own = useful_flops(policy, length, trains_mtp=False)
    return own * (settings.epochs * learned + FORWARD * (scored * learned + prefilled + sampled))
