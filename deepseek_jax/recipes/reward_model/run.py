"""A reward model (arXiv:2501.12948, section 3.1), from a base model or a checkpoint.

base -> add a scalar head -> measure on held-out preferences -> train -> measure again -> report.
"""

import functools

from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.driver import Stage, Work
from deepseek_jax.recipes.kinds.prefer import PHASE
from deepseek_jax.recipes.kinds.preferences import load_preferences, with_ids
from deepseek_jax.recipes.reward_model.settings import RewardModelSettings
from deepseek_jax.recipes.short import PolicyJob, start_of
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.preferences import reward_model_table
from deepseek_jax.reports.tables import plot_curves
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = RewardModelSettings
CURVES = ("loss", "accuracy", "margin", "safe_probability", "grad_norm")


class RewardModelJob(PolicyJob):
    """The preferences. Leaves the reward model in params, for config.reward_models.NAME.path elsewhere."""

    settings: RewardModelSettings

    def __init__(self, *arguments):
        super().__init__(*arguments)
        start = start_of(self.settings)
        self.stages = start, Stage(PHASE, "prefer", start.name)

    def phase_of(self, stage: Stage):
        folder = self.run.folder
        return self.run.of(stage.name, folder if stage.kind == "prefer" else None)

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

    def is_complete(self):
        # What its stage leaves last
        return is_whole(self.run.folder / "params")

    def describe_data(self):
        train, held_out = self.records
        return f"{len(train)} records, and {len(held_out)} held out, such as {train[0]}"

    def report(self):
        """Draw the curves and print the scores. Process 0 alone."""
        if not first_process():
            return
        workdir, console = self.run.folder, make_console()
        metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
        plot_curves(metrics, picture, phase=PHASE, names=CURVES)
        console.print(reward_model_table("held-out preferences", workdir))
        console.print(
            f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}"
        )
        folder = workdir / "params"
        console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")


JOB = RewardModelJob
