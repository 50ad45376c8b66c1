"""A generative reward model (arXiv:2412.19437, section 5.2.1), fine-tuned to compare two answers, grade them
and say which one is better.

base -> verdicts on held-out pairs -> fine-tune on judgements -> verdicts again -> report.
"""

from deepseek_jax import reports
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.judge import PHASE, TRAIN_JUDGE, judged_pairs
from deepseek_jax.recipes.reward_model.settings import JudgeSettings
from deepseek_jax.recipes.short import PayingJob
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = JudgeSettings


class JudgeJob(PayingJob):
    """The pairs."""

    settings: JudgeSettings
    world = BILINGUAL
    trains = PHASE, TRAIN_JUDGE
    page_title = "Judge"
    title = "verdicts on held-out pairs"
    curves = ("loss",)

    def pairs(self, work: Work):
        """The training and held-out pairs: a Task."""
        folder = self.run.folder / "data"
        return self.once(work, "pairs", lambda: judged_pairs(self.settings, BILINGUAL, folder))

    def page(self, page, measured):
        answers = {
            when: {"": {"greedy": {"samples": reports.held_out_samples(found), "unscored": 0}}}
            for when, found in measured.items()
        }
        return reports.with_answers(page, answers)

    def describe_data(self):
        pairs = self.pairs(self.works()[-1])
        counts = f"{len(pairs.train)} pairs, and {len(pairs.held_out)} held out"
        return f"{counts}, such as {pairs.train[0]}"


JOB = JudgeJob
