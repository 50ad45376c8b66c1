"""The stage that measures a distillation's policies on the held-out questions of its tasks.

Slow tests: tests/recipes/distill/test_findings.py.
"""

import dataclasses
import json

from typing_extensions import override

from deepseek_jax.files import write_whole
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.distill.scores import answer_tasks, intervals, say_shares
from deepseek_jax.recipes.distill.settings import ScoreSettings
from deepseek_jax.recipes.distill.tasks import HeldOutQuestions
from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.stage import AnswerPlan
from deepseek_jax.rollout.policy import check_answers

# In the folder of a measurement: answers for the page
SAMPLES = "samples.json"


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureTasks(Measure):
    """Stage that measures a policy's share of right answers in each task."""

    settings: ScoreSettings
    questions: HeldOutQuestions

    @override
    def check(self, config, mesh):
        check_answers(config, self.settings)

    @override
    def programs(self, config, mesh, others):
        answering = AnswerPlan(
            self.settings, self.settings.num_questions, self.settings.samples, dtype=config.dtype
        )
        return scored_answer_programs(self, config, mesh, answering)

    @override
    def run(self, context):
        tasks = self.questions.read(context)
        with self.waiting(sum(len(task.questions) for task in tasks.values())):
            policy = context.load(self.start, trained=False)
            task_answers = answer_tasks(self.settings, tasks, policy, self.seed)
        say_shares(self.title, task_answers.shares)
        if first_process():
            write_whole(context.stage_folder / SAMPLES, json.dumps(task_answers.samples, indent=1))
        return task_answers.shares

    @override
    def scores(self, contents):
        # With several tasks the score of all of them comes last, and the headline has to be first
        return dict(reversed(intervals(contents).items()))
