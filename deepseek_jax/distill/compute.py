"""What it took to make a student: floating-point operations of its training and of its teacher's help.

Not counted: its start, which it shares with those that it is compared with, and the teacher's own training,
as in the paper's comparison (arXiv:2501.12948, section 4.1). Of a distilled student padding counts, for it is
computed; of a reinforced one only that of prompts, so that a comparison is in its favour.
"""

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.distill.settings import CROSS
from deepseek_jax.training.metrics import read_metrics

FORWARD = 1 / 3  # of a forward and a backward pass


def distilled(student, policy, teacher, *, texts, answered):
    """Operations of a distilled student: float.

    student: StudentSettings. policy, teacher: ModelConfigs, teacher None where there is none. texts: how many
    there are to learn from; answered: how many tokens the teacher sampled for them.
    """
    loss, length = student.loss, student.sequence_length
    own, taught = useful_flops(policy, length, trains_mtp=False), 0.0
    if teacher is not None:
        taught = FORWARD * useful_flops(teacher, length, trains_mtp=False)
    total, rows = 0.0, student.num_steps * student.batch_size
    if loss.learns_texts():
        online = loss.needs("hidden", "relations", *CROSS)
        online |= loss.needs("soft") and loss.top_k is None
        total += rows * length * (own + online * taught) + answered * taught
        total += (loss.top_k is not None) * texts * length * taught
    if loss.on_policy is not None:
        rows = student.num_steps * loss.on_policy.prompts
        sampled = rows * loss.on_policy.max_completion_length
        total += rows * length * (own + taught) + sampled * FORWARD * own
    return total


def reinforced(settings, policy, metrics_path, phase):
    """Operations of a reinforced student: of reading prompts, sampling, and learning: float.

    settings: ReinforceSettings, whose log_every is 1. metrics_path: of the run that has this phase. A pass
    over the batch, forward alone, for old log-probabilities and one for the reference's are counted where the
    settings ask for them.
    """
    length = settings.rollout.max_prompt_length + settings.rollout.longest()
    records = read_metrics(metrics_path, phase)
    names = ("tokens", "prefilled_positions", "sampled_tokens")
    tokens, prefilled, sampled = (sum(record[name] for record in records) for name in names)
    learned = tokens + prefilled
    scored = (settings.minibatches * settings.epochs > 1) + (settings.loss.kl_coef > 0)
    own = useful_flops(policy, length, trains_mtp=False)
    return own * (settings.epochs * learned + FORWARD * (scored * learned + prefilled + sampled))
