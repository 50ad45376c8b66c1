"""Group Relative Policy Optimisation (arXiv:2402.03300), from a base model or a checkpoint.

base -> measure on held-out questions -> sample groups, reward, update -> measure again -> report.
"""

import contextlib
import dataclasses
import functools

from deepseek_jax import reports
from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.tasks import Task, file_task, held_apart
from deepseek_jax.errors import at
from deepseek_jax.evaluation.held_out import evaluate_both, scores_of_both
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.conversing import rewards_of, try_environment
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.reinforce import REINFORCE
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.short import TrainedJob
from deepseek_jax.recipes.stage import Answering
from deepseek_jax.recipes.start import left_in
from deepseek_jax.reinforce.effort import asked_with, check_lines, with_efforts
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import deciding, say_deciding, scenario_rewards
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.training.remembered import before_and_after
from deepseek_jax.worlds.registry import find_questions

SETTINGS = GrpoSettings
PHASE = "grpo"


class GrpoJob(TrainedJob):
    """The questions and the rewards."""

    settings: GrpoSettings

    trains = PHASE, REINFORCE
    page_title = "GRPO"

    @functools.cached_property
    def read(self):
        """(Task, general questions, [] without settings.general)."""
        settings, data, general = self.settings, self.settings.data, []
        plays = settings.environment is not None
        with at("data"):
            if data.path is not None:
                task = file_task(
                    data.path,
                    data.num_held_out,
                    seed=settings.seed,
                    split=data.split,
                    columns=data.columns,
                )
                task = held_apart(task, plays)
            else:
                questions = find_questions(data.task)[1]
                task = questions.task(settings.seed, data.num_held_out, plays)
        if settings.general is not None:
            with at("general"):
                own = settings.general
                general = read_questions(own.path, own.split, own.columns)
                general = held_apart(Task(general, task.held_out), plays).train
        return task, general

    @functools.cached_property
    def prompts(self):
        """{"training", "held-out", "general": examples} with their prompt_ids, without prompts above
        rollout.max_prompt_length. With settings.effort each question is there once for each effort.
        """
        policy, effort, (task, general) = self.policy, self.settings.effort, self.read
        parts, together = {"training": task.train, "held-out": task.held_out, "general": general}, 1
        if effort is not None:
            with at("effort"):
                check_lines(effort, policy.tokenizer, policy.template)
            parts = {kind: with_efforts(effort, examples) for kind, examples in parts.items()}
            # All efforts are measured on the same questions
            together = len(effort.values)
        limit = self.settings.rollout.limit()
        with at("rollout"):
            return {
                kind: policy.ask(examples, limit, kind, together) if examples else []
                for kind, examples in parts.items()
            }

    @functools.cached_property
    def paid(self):
        """scenario -> its Rewards."""
        settings, tools, models = self.settings, self.policy.tools, {}
        if settings.reward_models:
            with at("reward_models"):
                buffer = settings.model.get("expert_buffer")
                models = load_model_rewards(settings.reward_models, self.mesh, buffer)
        if tools is not None:
            models |= rewards_of(tools.environments)
        return self.opened.enter_context(scenario_rewards(self.settings, models))

    def rewards(self, work: Work):
        """A context with the rewards of each scenario, which stay open for the whole run."""
        return contextlib.nullcontext(self.paid)

    def check_rewards(self, work: Work):
        """Raise ValueError where the rewards of their scenario cannot score the questions, and where an
        environment fails in its first conversation.
        """
        paid, (task, general), tools = self.paid, self.read, self.policy.tools
        if tools is not None:
            try_environment(tools.environments, task.train)
        with at("rewards"):
            paid["reasoning"].check([*task.train, *task.held_out])
        say_deciding(self.settings, paid["reasoning"])
        if general:
            with at("general.rewards"):
                paid["general"].check(general)

    def questions(self, work: Work):
        """The questions to learn from, by kind."""
        return {"reasoning": self.prompts["training"], "general": self.prompts["general"]}

    def answering(self, work: Work):
        settings, rollout = self.settings, self.settings.rollout
        return Answering(
            rollout.at(settings.num_steps),
            settings.data.num_held_out,
            prompt_length=rollout.max_prompt_length,
            turns=settings.most_turns(),
        )

    def count_measured(self, work: Work):
        return len(self.prompts["held-out"])

    def measure(self, work: Work):
        """Answer the held-out questions twice: sampled at the last step's temperature, and greedily. With
        settings.effort: effort -> that.
        """
        settings, rollout = self.settings, self.settings.rollout
        ask = functools.partial(
            evaluate_both,
            work.start(),
            options=AnswerOptions(
                max_completion_length=rollout.longest(),
                temperature=rollout.temperature_at(settings.num_steps),
                slots=rollout.slots,
            ),
            accuracy=deciding(settings, self.paid["reasoning"]),
            seed=settings.seed,
        )
        held_out, rewards = self.prompts["held-out"], self.paid["reasoning"]
        if settings.effort is None:
            return ask(held_out, rewards)
        # JSON has no numbers as keys
        return {str(b): ask(asked_with(b, held_out), rewards) for b in settings.effort.values}

    def scores_of(self, result):
        if self.settings.effort is None:
            return scores_of_both(result)
        return {
            f"{name}_effort_{effort}": score
            for effort, answers in result.items()
            for name, score in scores_of_both(answers).items()
        }

    def answers_of(self, measured):
        if self.settings.effort is None:
            return {"": measured}
        return {f"effort {effort}": answers for effort, answers in measured.items()}

    def page(self, page, measured):
        # The accuracy of each effort stands before their rewards
        scores = {row: _by_score(of) for row, of in page.scores.items()}
        return super().page(dataclasses.replace(page, scores=scores), measured)

    def describe_data(self):
        task, general = self.read
        counts = f"{len(task.train)} questions, {len(task.held_out)} held out, {len(general)} general ones"
        return f"{counts}, such as {task.train[0]['question']!r}"

    def report(self):
        """Print the table and samples, draw the curves. Process 0 alone draws."""
        settings, workdir = self.settings, self.run.folder
        console, (before, after) = reports.make_console(), before_and_after(workdir)
        curves, pictures = reports.CURVES, "curves.png"
        if settings.effort is not None:
            curves += tuple(f"completion_length_effort_{b}" for b in settings.effort.values)
            pictures += ", efforts.png"
        if first_process():
            metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
            reports.plot_curves(metrics, picture, phase=PHASE, names=curves)
        if settings.effort is None:
            reports.print_table(console, before, after)
            reports.print_samples(console, before["sampled"], after["sampled"])
        else:
            reports.report_efforts(console, before, after, workdir / "efforts.png")
        write_page(self)
        left = f"report.html, {left_in(settings)}, metrics, {pictures}, tensorboard and checkpoints"
        console.print(f"complete; {left} are in {workdir}")


def _by_score(scores: dict):
    """Scores of several efforts, each score's together."""
    names = [name.partition("_effort_")[0] for name in scores]
    order = sorted(zip(map(names.index, names), scores, strict=True), key=lambda pair: pair[0])
    return {name: scores[name] for _, name in order}


JOB = GrpoJob
