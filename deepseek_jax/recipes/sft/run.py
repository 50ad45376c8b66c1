"""Supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2).

base -> loss and answers on held-out conversations -> fine-tune -> measure again -> report.
"""

import functools

from deepseek_jax.errors import at
from deepseek_jax.evaluation.held_out import evaluate_both, scores_of_both
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.tune import TUNE, check_conversations, held_out_loss, rows_of
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.sft.data import held_out_prompts, load_conversations
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.short import TrainedJob
from deepseek_jax.recipes.stage import Answering
from deepseek_jax.recipes.start import left_in
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import best_share, say_deciding
from deepseek_jax.reports.answers import make_console, print_samples, print_table
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.training.remembered import before_and_after
from deepseek_jax.worlds.registry import find_questions, open_rewards

SETTINGS = SftSettings
PHASE = "sft"
CURVES = ("loss", "held_out_loss", "grad_norm")


class SftJob(TrainedJob):
    """The conversations and the rewards."""

    settings: SftSettings

    trains = PHASE, TUNE
    page_title = "Fine-tuning"

    @functools.cached_property
    def read(self):
        """(training conversations, held-out ones)."""
        return load_conversations(self.settings, self.run.folder / "data")

    @functools.cached_property
    def loss_of(self):
        """The ConversationLoss of the held-out conversations."""
        return held_out_loss(self.settings, self.policy, self.read[1], self.mesh)

    @functools.cached_property
    def asked(self):
        """The held-out prompts that are answered."""
        return held_out_prompts(self.settings, self.policy, self.read[1])

    @functools.cached_property
    def accuracy(self):
        """The reward that decides whether an answer is right, or None."""
        settings = self.settings
        if settings.accuracy is None and settings.data.path is None:
            return find_questions(settings.data.task)[1].rule
        return settings.accuracy

    @functools.cached_property
    def rewards(self):
        """The Rewards that score answers, with the trained reward models; None for no scores."""
        settings = self.settings
        weights = dict(settings.rewards)
        if self.accuracy is not None:
            # Beside rewards it decides what is right, and adds nothing to their sum
            weights.setdefault(self.accuracy, 0.0 if weights else 1.0)
        if not weights and not settings.reward_models:
            return None
        with at("reward_models"):
            models = load_model_rewards(
                settings.reward_models, self.mesh, settings.model.get("expert_buffer")
            )
        with at("rewards"):
            return self.opened.enter_context(open_rewards(weights, models=models))

    @property
    def decides(self):
        """The reward that decides whether an answer is right, or None where the rewards have no share."""
        if self.accuracy is not None or self.rewards is None:
            return self.accuracy
        return best_share(self.rewards)

    def check_conversations(self, work: Work):
        """Raise ValueError where a conversation cannot be rendered, or none fits a row."""
        train, held_out = self.read
        check_conversations(self.policy, train, "training", rows_of(work.settings))
        whole = rows_of(work.settings, held_out=True)
        check_conversations(self.policy, held_out, "held-out", whole)

    def conversations(self, work: Work):
        """(training conversations, the ConversationLoss of the held-out ones)."""
        return self.read[0], self.loss_of

    def check_measured_data(self, work: Work):
        """Raise ValueError where the rewards cannot score the answers."""
        rewards, asked = self.rewards, self.asked
        if rewards is not None and asked:
            with at("rewards"):
                rewards.check(asked)
            if self.decides is not None and self.accuracy is None:
                say_deciding(self.settings, rewards)

    def answering(self, work: Work):
        asked = self.settings.answers
        return Answering(asked, asked.num_prompts, scored=bool(self.settings.rewards))

    def count_measured(self, work: Work):
        return len(self.asked) or None

    def measure(self, work: Work):
        """The loss of the held-out conversations, and the scores of answers to their last questions."""
        settings, policy = self.settings, work.start()
        answers = (
            None
            if not self.asked
            else evaluate_both(
                policy,
                self.asked,
                self.rewards,
                settings.answers,
                accuracy=self.decides,
                seed=settings.seed,
            )
        )
        return {"loss": self.loss_of(policy.params), "answers": answers}

    def scores_of(self, result):
        answers = result["answers"]
        scores = {} if answers is None else scores_of_both(answers)
        return {"held_out_loss": result["loss"]["loss"]} | scores

    def answers_of(self, measured):
        return {} if measured["answers"] is None else {"": measured["answers"]}

    def describe_data(self):
        train, held_out = self.read
        counts = f"{len(train)} conversations, and {len(held_out)} held out"
        return f"{counts}, such as {train[0]['messages']}"

    def report(self):
        """Print the tables and samples, draw the curves. Process 0 alone draws."""
        settings, workdir = self.settings, self.run.folder
        console, (before, after) = make_console(), before_and_after(workdir)
        if first_process():
            metrics, picture = workdir / "metrics.jsonl", workdir / "curves.png"
            plot_curves(metrics, picture, phase=PHASE, names=CURVES)
        losses = [measured["loss"]["loss"] for measured in (before, after)]
        console.print(loss_table({PHASE: (settings.sequence_length, *losses)}))
        tokens, conversations = after["loss"]["tokens"], after["loss"]["conversations"]
        console.print(f"over {tokens} tokens of {conversations} held-out conversations")
        if before["answers"] is not None:
            print_table(console, before["answers"], after["answers"])
            print_samples(console, before["answers"]["sampled"], after["answers"]["sampled"])
        write_page(self)
        left = f"report.html, {left_in(settings)}, metrics, curves.png, tensorboard and checkpoints"
        console.print(f"complete; {left} are in {workdir}")


JOB = SftJob
