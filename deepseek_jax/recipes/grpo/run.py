"""Group Relative Policy Optimisation (arXiv:2402.03300), from a base model or a checkpoint.

base -> measure on held-out questions -> sample groups, reward, update -> measure again -> report
"""

import dataclasses
import functools

from typing_extensions import override

from deepseek_jax import reports
from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.tasks import Task, file_task, held_apart
from deepseek_jax.errors import at
from deepseek_jax.evaluation.held_out import evaluate_both, scores_of_both
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.kinds.reinforce import Questions, Reinforce, ask_held_out
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.paid import StageRewards
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.short import first_stage
from deepseek_jax.recipes.stage import AnswerPlan, Context, Source, Stage
from deepseek_jax.reinforce.effort import asked_with
from deepseek_jax.reinforce.scenarios import deciding
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.worlds.registry import find_questions

SETTINGS = GrpoSettings


def stages(s: GrpoSettings) -> list[Stage]:
    """List the stages: a base or a checkpoint, a measurement, GRPO, and another measurement."""
    questions = TaskQuestions(s)
    rewards = StageRewards(s, reward_models=s.reward_models, stays=True)
    start_stage = first_stage(s, s.data.template, conversing=s, waiting=(rewards,))

    # A measurement is repeated only if one of these changes
    answer_settings = {"rollout": s.rollout, "rewards": s.rewards, "accuracy": s.accuracy}
    answer_settings |= {"temperature": s.rollout.temperature_at(s.num_steps)}
    answer_settings |= {"effort": s.effort, "talk": [*s.tools, s.environment, s.conversation]}

    def measurement(name, start, adapter=None):
        return MeasureAnswers(
            name,
            answer_settings,
            s,
            HeldOut(questions),
            rewards,
            seed=s.seed,
            start=start,
            adapter=adapter,
            path="",
            label="answers: ",
            title=name,
        )

    grpo = Reinforce(
        "grpo",
        s,
        questions,
        rewards,
        seed=s.seed,
        start=start_stage.name,
        adapter=s.adapter,
        path="",
        label="",
        title="GRPO",
    )
    return [
        start_stage,
        measurement("before", start_stage.name, s.adapter),
        grpo,
        measurement("after", "grpo"),
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskQuestions(Questions):
    """The questions of config.data, and the general questions of config.general."""

    settings: GrpoSettings

    @functools.cached_property
    def task(self) -> Task:
        """The Task of config.data: questions to train on, and held-out questions."""
        settings, data = self.settings, self.settings.data
        with at("config"), at("data"):
            if data.path is None:
                questions = find_questions(data.task)[1]
                return questions.task(settings.seed, data.num_held_out, self._plays)
            task = file_task(
                data.path,
                data.num_held_out,
                seed=settings.seed,
                split=data.split,
                columns=data.columns,
            )
            return held_apart(task, self._plays)

    @functools.cached_property
    def general(self) -> list[dict]:
        """The general questions, without held-out questions; [] if config.general is None."""
        if self.settings.general is None:
            return []
        with at("config"), at("general"):
            general_data = self.settings.general
            # GrpoSettings refuses a block without a path
            assert general_data.path is not None
            questions = read_questions(general_data.path, general_data.split, general_data.columns)
            return held_apart(Task(questions, self.task.held_out), self._plays).train

    @property
    def _plays(self):
        return self.settings.environment is not None

    @override
    def covers(self, context):
        return [self.task.train, self.task.held_out, self.general]

    @override
    def describe(self, context):
        task, general = self.task, len(self.general)
        counts = (
            f"{len(task.train)} questions, {len(task.held_out)} held out, {general} general ones"
        )
        return f"{counts}, such as {task.train[0]['question']!r}"

    @override
    def read(self, context):
        return {"reasoning": self.task.train, "general": self.general}

    @override
    def held_out(self, context):
        return self.task.held_out


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut(Source):
    """The held-out questions."""

    questions: TaskQuestions

    @override
    def covers(self, context):
        return self.read(context)

    def read(self, context: Context) -> list[dict]:
        """Return the examples, without their prompt_ids."""
        return self.questions.held_out(context)


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureAnswers(Measure):
    """A measurement of a policy: its answers to the held-out questions, sampled and greedy.

    Sampled answers are drawn at the temperature of the last step. The result of `run` is as
    evaluate_both returns it; with config.effort it is {effort: such a result}.

    Attributes:
        whole: The settings of the whole config.
    """

    whole: GrpoSettings
    held_out: HeldOut
    rewards: StageRewards

    @override
    def check_data(self, context):
        super().check_data(context)
        with self.rewards.open(context) as rewards_by_scenario, at("rewards"):
            rewards_by_scenario["reasoning"].check(self.held_out.read(context))
        self.fitting_questions(context)

    def fitting_questions(self, context: Context) -> list[dict]:
        """Return the held-out questions that fit, see ask_held_out."""
        return ask_held_out(context, self.whole, self.held_out.questions)

    @override
    def programs(self, config, mesh, others):
        settings, rollout = self.whole, self.whole.rollout
        answering = AnswerPlan(
            rollout.at(settings.num_steps),
            settings.data.num_held_out,
            prompt_length=rollout.max_prompt_length,
            turns=settings.most_turns(),
        )
        return scored_answer_programs(self, config, mesh, answering, self.rewards)

    @override
    def run(self, context):
        settings, held_out = self.whole, self.fitting_questions(context)
        rollout = settings.rollout
        with self.waiting(len(held_out)), self.rewards.open(context) as rewards_by_scenario:
            rewards = rewards_by_scenario["reasoning"]
            evaluate = functools.partial(
                evaluate_both,
                context.load_start(),
                options=AnswerOptions(
                    max_completion_length=rollout.longest(),
                    temperature=rollout.temperature_at(settings.num_steps),
                    slots=rollout.slots,
                ),
                accuracy=deciding(settings, rewards),
                seed=self.seed,
            )
            if settings.effort is None:
                return evaluate(held_out, rewards)
            # JSON has no numbers as keys
            return {
                str(effort): evaluate(asked_with(effort, held_out), rewards)
                for effort in settings.effort.values
            }

    @override
    def scores(self, contents):
        if self.whole.effort is None:
            return scores_of_both(contents)
        return {
            f"{name}_effort_{effort}": score
            for effort, answers in contents.items()
            for name, score in scores_of_both(answers).items()
        }


def page(results: Results) -> reports.Page:
    """Build the page, with answers to held-out questions."""
    measurements, common_page = results.contents(), run_page(results, "GRPO")
    if results.settings.effort is None:
        return reports.with_answers(
            common_page, {when: {"": answers} for when, answers in measurements.items()}
        )
    # First the accuracy of every effort, then the reward of every effort, and so on
    scores = {row: _by_score(row_scores) for row, row_scores in common_page.scores.items()}
    answers = {
        when: {
            f"effort {effort}": effort_answers
            for effort, effort_answers in answers_by_effort.items()
        }
        for when, answers_by_effort in measurements.items()
    }
    return reports.with_answers(dataclasses.replace(common_page, scores=scores), answers)


def report(results: Results):
    """Print the table and samples, and draw the curves; only process 0 draws."""
    settings, workdir, measurements = results.settings, results.folder, results.contents()
    console, before, after = reports.make_console(), measurements["before"], measurements["after"]
    curves = reports.CURVES
    if settings.effort is not None:
        curves += tuple(f"completion_length_effort_{effort}" for effort in settings.effort.values)
    if first_process():
        metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
        reports.plot_curves(metrics, picture, phase="grpo", names=curves)
    if settings.effort is None:
        reports.print_table(console, before, after)
        reports.print_samples(console, before["sampled"], after["sampled"])
    else:
        reports.report_efforts(console, before, after, workdir / "efforts.png")


def _by_score(scores: dict):
    """Group the scores of several efforts by score."""
    names = [name.partition("_effort_")[0] for name in scores]
    ordered_pairs = sorted(
        zip(map(names.index, names), scores, strict=True), key=lambda pair: pair[0]
    )
    return {name: scores[name] for _, name in ordered_pairs}
