"""The measurement of a distillation's policies on the held-out questions of its tasks."""

import dataclasses
import json

from deepseek_jax.files import write_whole
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.distill.scores import answer_tasks, intervals, say_shares
from deepseek_jax.recipes.distill.settings import ScoreSettings
from deepseek_jax.recipes.distill.tasks import HeldOutQuestions
from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.stage import Answering
from deepseek_jax.rollout.policy import check_answers

SAMPLES = "samples.json"  # answers in the folder of a measurement, for the page


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureTasks(Measure):
    """The shares of right answers to the questions of each task."""

    settings: ScoreSettings
    questions: HeldOutQuestions

    def check(self, config, mesh):
        check_answers(config, self.settings)

    def programs(self, config, mesh, others):
        asked = Answering(
            self.settings, self.settings.num_questions, self.settings.samples, dtype=config.dtype
        )
        return scored_answer_programs(self, config, mesh, asked)

    def run(self, context):
        tasks = self.questions.read(context)
        with self.waiting(sum(len(task.questions) for task in tasks.values())):
            policy = context.load(self.start, trained=False)
            found = answer_tasks(self.settings, tasks, policy, self.seed)
        say_shares(self.title, found.shares)
        if first_process():
            write_whole(context.own / SAMPLES, json.dumps(found.samples, indent=1))
        return found.shares

    def scores(self, found):
        # The score of all tasks, where there are several, is the last
        return dict(reversed(intervals(found).items()))
