"""Sections of metrics on the boards (TensorBoard and W&B), and tables in Markdown for them.

A board makes one section of each group of metrics. metrics.jsonl has the names of the metrics
without their groups.
"""

import fnmatch
import functools
import html
from collections.abc import Sequence

# Group -> patterns (see fnmatch) of its metrics. A pattern matches the part of a name before the
# first slash: the part after it is the name of a layer, or a name from the config or the user
GROUPS = {
    "speed": (
        "seconds reward_seconds teacher_seconds weight_sync_time exposed_generation_time "
        "policy_training_time train_step_time mfu update_mfu tokens_per_second "
        "rollout_tokens_per_second update_tokens_per_second valid_tokens_per_sec_per_gpu"
    ).split(),
    "memory": "host_* device_* largest_* smallest_*".split(),
    "experts": "max_vio load_entropy expert_overflows exchange_rounds".split(),
    "optimizer": "learning_rate plateau_scale grad_norm nonfinite".split(),
    "rewards": (
        "reward reward_* accuracy accuracy_effort_* held_out_accuracy logged unread "
        "all_equal_share margin safe_probability"
    ).split(),
    "rollout": (
        "completion_length* truncated_share* sampled_tokens prefilled_positions "
        "sampling_rounds equal_groups_used new_questions left_out_tokens "
        "stale_params sampler_gap_* temperature"
    ).split(),
    "conversations": "turns tool_calls tool_errors tool_seconds truncated_turns rewritten_turns".split(),
    "loss": (
        "loss *_loss loss_* regressed kl kl_* entropy entropy_* ratio_mean "
        "importance_weight_mean off_policy_fraction clip_fraction* soft soft_bound hard "
        "hidden relations matched sorted on_policy l2 tokens row_tokens learned_tokens "
        "marked_advantages"
    ).split(),
}
# The group of a metric that no pattern fits
OTHER = "other"


@functools.cache
def group_of(name: str):
    """Return the group of a metric: a key of GROUPS, or OTHER."""
    first = name.partition("/")[0]
    for group, patterns in GROUPS.items():
        if any(fnmatch.fnmatchcase(first, pattern) for pattern in patterns):
            return group
    return OTHER


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence]):
    """Format rows as a table in Markdown.

    A text is escaped, so that the table shows it as it is. A float gets four significant digits,
    and None gives an empty cell.
    """
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else html.escape(str(value))
    return text.replace("|", "&#124;").replace("\n", "<br>")
