"""A generative reward model (arXiv:2412.19437, section 5.2.1), fine-tuned to compare two answers, grade them
and say which one is better.

base -> verdicts on held-out pairs -> fine-tune on judgements -> verdicts again -> report.
"""

from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.driver import Stage, Work
from deepseek_jax.recipes.kinds.judge import PHASE, is_judge, judged_pairs
from deepseek_jax.recipes.reward_model.settings import JudgeSettings
from deepseek_jax.recipes.short import PolicyJob, start_of
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.preferences import reward_model_table
from deepseek_jax.reports.tables import plot_curves
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = JudgeSettings


class JudgeJob(PolicyJob):
    """The pairs. Leaves the judge in params, for config.reward_models.NAME.path of another run."""

    settings: JudgeSettings
    world = BILINGUAL

    def __init__(self, *arguments):
        super().__init__(*arguments)
        start = start_of(self.settings)
        self.stages = start, Stage(PHASE, "judge", start.name)

    def phase_of(self, stage: Stage):
        folder = self.run.folder
        return self.run.of(stage.name, folder if stage.kind == "judge" else None)

    def pairs(self, work: Work):
        """The training and held-out pairs: a Task."""
        folder = self.run.folder / "data"
        return self.once(work, "pairs", lambda: judged_pairs(self.settings, BILINGUAL, folder))

    def is_complete(self):
        return is_judge(self.run.folder)

    def describe_data(self):
        pairs = self.pairs(self.works()[-1])
        counts = f"{len(pairs.train)} pairs, and {len(pairs.held_out)} held out"
        return f"{counts}, such as {pairs.train[0]}"

    def report(self):
        """Draw the curves and print the scores. Process 0 alone."""
        if not first_process():
            return
        workdir, console = self.run.folder, make_console()
        metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
        plot_curves(metrics, picture, phase=PHASE, names=("loss",))
        console.print(reward_model_table("verdicts on held-out pairs", workdir))
        console.print(
            f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}"
        )
        folder = workdir / "params"
        console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")


JOB = JudgeJob
