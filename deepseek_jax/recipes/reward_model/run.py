"""A reward model (arXiv:2501.12948, section 3.1), from a base model or a checkpoint.

base -> add a scalar head -> measure on held-out preferences -> train -> measure again -> report.
"""

import functools

from deepseek_jax import reports
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.prefer import PHASE, PREFER
from deepseek_jax.recipes.kinds.preferences import load_preferences, with_ids
from deepseek_jax.recipes.reward_model.settings import RewardModelSettings
from deepseek_jax.recipes.short import PayingJob
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = RewardModelSettings


class RewardModelJob(PayingJob):
    """The preferences."""

    settings: RewardModelSettings

    trains = PHASE, PREFER
    page_title = "Reward model"
    title = "held-out preferences"
    curves = ("loss", "accuracy", "margin", "safe_probability", "grad_norm")

    @functools.cached_property
    def records(self):
        """(training records, held-out records)."""
        return load_preferences(self.settings, BILINGUAL, self.run.folder / "data")

    def preferences_with_ids(self, work: Work):
        """The same with the ids of their responses."""
        kinds = zip(self.records, ("training", "held-out"), strict=True)
        return self.once(
            work, "ids", lambda: [with_ids(self.settings, self.policy, *part) for part in kinds]
        )

    def page(self, page, measured):
        return reports.with_preferences(page, measured)

    def describe_data(self):
        train, held_out = self.records
        return f"{len(train)} records, and {len(held_out)} held out, such as {train[0]}"


JOB = RewardModelJob
