"""Floating-point operations of a student: its training and the teacher's forward passes for it.

Not counted are the start, which compared students share, and the teacher's own training, as in the
paper's comparison (arXiv:2501.12948, section 4.1). For a distilled student padding counts, because
it is computed. For a reinforced one only the prompts' padding counts, so a comparison favours
reinforcement.
"""

from pathlib import Path

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill.settings import CROSS
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.training.metrics import read_metrics

# The forward pass's share of both passes. The backward pass needs two products for each product
# forward: the gradient of each factor
FORWARD = 1 / 3


def distilled(
    student, policy: ModelConfig, teacher: ModelConfig | None, *, texts: int, answered: int
) -> float:
    """Count the operations of a distilled student.

    Args:
        student: StudentSettings.
        policy: The student's model.
        teacher: None for a student without a teacher.
        texts: Number of texts in the training set.
        answered: Tokens that the teacher sampled to write the texts.
    """
    loss, length = student.loss, student.sequence_length
    frozen = student.adapter is not None
    student_flops, teacher_flops = (
        useful_flops(policy, length, trains_mtp=False, frozen=frozen),
        0.0,
    )
    if teacher is not None:
        teacher_flops = FORWARD * useful_flops(teacher, length, trains_mtp=False)
    total_flops, rows = 0.0, student.num_steps * student.batch_size
    if loss.learns_texts():
        runs_teacher = loss.needs("hidden", "relations", *CROSS)
        # Cached soft targets cost one teacher pass over the texts (below), others one at each
        # update
        runs_teacher |= loss.needs("soft") and loss.top_k is None
        total_flops += (
            rows * length * (student_flops + runs_teacher * teacher_flops)
            + answered * teacher_flops
        )
        total_flops += (loss.top_k is not None) * texts * length * teacher_flops
    if loss.on_policy is not None:
        rows = student.num_steps * loss.on_policy.prompts
        sampled_tokens = rows * loss.on_policy.max_completion_length
        sampling_flops = FORWARD * useful_flops(policy, length, trains_mtp=False)
        total_flops += (
            rows * length * (student_flops + teacher_flops) + sampled_tokens * sampling_flops
        )
    return total_flops


def reinforced(
    settings: ReinforceSettings, policy: ModelConfig, metrics_path: Path, phase: str
) -> float:
    """Count the operations of a reinforced student for prompts, sampling and training.

    Old log-probabilities cost one more forward pass over the batch, and so do the reference's,
    where the settings need them.

    Args:
        settings: With log_every=1.
        metrics_path: The metrics of the run that has this phase.
    """
    length = settings.rollout.max_prompt_length + settings.rollout.longest()
    records = read_metrics(metrics_path, phase)
    names = ("tokens", "prefilled_positions", "sampled_tokens")
    tokens, prefilled_positions, sampled_tokens = (
        sum(record[name] for record in records) for name in names
    )
    learned_positions = tokens + prefilled_positions
    scoring_passes = len(settings.scored())
    token_flops = useful_flops(policy, length, trains_mtp=False)
    return token_flops * (
        settings.epochs * learned_positions
        + FORWARD * (scoring_passes * learned_positions + prefilled_positions + sampled_tokens)
    )
