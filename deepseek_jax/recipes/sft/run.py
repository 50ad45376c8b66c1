"""Supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2).

base -> loss and answers on held-out conversations -> fine-tune -> measure again -> report
"""

import dataclasses

from typing_extensions import override

from deepseek_jax.data.records import content_digest
from deepseek_jax.errors import at
from deepseek_jax.evaluation.held_out import evaluate_both, scores_of_both
from deepseek_jax.named_code import code_digests
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.kinds.paying import RewardSource
from deepseek_jax.recipes.kinds.tune import Texts, Tune, conversation_loss
from deepseek_jax.recipes.origin import digest
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.sft.data import held_out_prompts, load_conversations
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.short import first_stage
from deepseek_jax.recipes.stage import AnswerPlan, Context, Stage
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import best_share, say_deciding
from deepseek_jax.reports.answer_samples import with_answers
from deepseek_jax.reports.answers import make_console, print_samples, print_table
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.rewards.scoring import Rewards
from deepseek_jax.rollout.speculative import check as check_drafts
from deepseek_jax.worlds.registry import find_questions, open_rewards

SETTINGS = SftSettings
CURVES = ("loss", "held_out_loss", "grad_norm")


def stages(s: SftSettings) -> list[Stage]:
    """List the stages: a base or a checkpoint, a measurement, fine-tuning, another measurement."""
    texts, held_out, rewards = Conversations(s), Conversations(s, held_out=True), AnswerRewards(s)
    start_stage = first_stage(s, s.data.template, waiting=(rewards,))

    # A measurement is repeated only if one of these changes
    answer_settings = {
        "data": s.data,
        "answers": s.answers,
        "rewards": s.rewards,
        "accuracy": s.accuracy,
    }
    answer_settings |= {"sequence_length": s.sequence_length}

    def measurement(name, start, adapter=None):
        return MeasureConversations(
            name,
            answer_settings,
            s,
            held_out,
            rewards,
            seed=s.seed,
            start=start,
            adapter=adapter,
            path="",
            label="answers: ",
            title=name,
        )

    sft = Tune(
        "sft",
        s,
        texts,
        held_out,
        (rewards,),
        seed=s.seed,
        start=start_stage.name,
        adapter=s.adapter,
        path="",
        label="",
        title="fine-tuning",
    )
    return [
        start_stage,
        measurement("before", start_stage.name, s.adapter),
        sft,
        measurement("after", "sft"),
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Conversations(Texts):
    """The conversations of config.data to train on, or the held-out conversations."""

    settings: SftSettings
    held_out: bool = False

    @override
    def covers(self, context):
        data = self.settings.data
        if data.path is not None:
            with at("config"), at("data"):
                return content_digest(data.path, data.split)
        return [[m["content"] for m in c["messages"]] for c in self.read(context)]

    @override
    def describe(self, context):
        train, held_out = self._both(context)
        counts = f"{len(train)} conversations, and {len(held_out)} held out"
        return f"{counts}, such as {train[0]['messages']}"

    def _both(self, context):
        with at("config"):
            return context.once(
                "conversations", lambda: load_conversations(self.settings, context.data)
            )

    @override
    def read(self, context):
        train, held_out = self._both(context)
        return held_out if self.held_out else train


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerRewards(RewardSource):
    """The rewards that score answers, with reward models; they stay open for the whole run."""

    settings: SftSettings

    @override
    def models(self, folder=None):
        return self.settings.reward_models

    @override
    def covers(self, context):
        models = self.settings.reward_models.items()
        paths = {name: digest(block.path) for name, block in models}
        return [paths, code_digests(self.settings)]

    @property
    def accuracy(self) -> str | None:
        """The reward that decides whether an answer is right: config.accuracy, or the task's rule.

        It is None if config.accuracy is None and the conversations are from a path.
        """
        settings = self.settings
        if settings.accuracy is None and settings.data.path is None:
            return find_questions(settings.data.task)[1].rule
        return settings.accuracy

    def decides(self, rewards: Rewards | None) -> str | None:
        """Return the reward that decides whether an answer is right, or None.

        It is `accuracy`; if that is None, it is scenarios.best_share of the rewards, which is None
        if no reward is a share.

        Args:
            rewards: The result of `read`.
        """
        if self.accuracy is not None or rewards is None:
            return self.accuracy
        return best_share(rewards)

    def read(self, context: Context) -> Rewards | None:
        """Return the Rewards; None if answers are not scored."""
        return context.once(self, lambda: self._open(context))

    def _open(self, context):
        settings = self.settings
        weights = dict(settings.rewards)
        if self.accuracy is not None:
            # With other rewards it decides what is right, and adds nothing to their sum
            weights.setdefault(self.accuracy, 0.0 if weights else 1.0)
        if not weights and not settings.reward_models:
            return None
        expert_buffer = settings.model.get("expert_buffer")
        with at("config"), at("reward_models"):
            models = load_model_rewards(settings.reward_models, context.mesh, expert_buffer)
        with at("config"), at("rewards"):
            return context.opened.enter_context(open_rewards(weights, models=models))


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureConversations(Measure):
    """Stage that measures a policy's held-out loss and scores its answers.

    It answers the last questions of these conversations.

    Attributes:
        whole: The settings of the whole config.
    """

    whole: SftSettings
    held_out: Conversations
    rewards: AnswerRewards

    @override
    def check(self, config, mesh):
        # Whether answers fit is known with the prompts
        if self.whole.answers.speculative:
            with at("config.answers"):
                check_drafts(config)

    @override
    def check_data(self, context):
        super().check_data(context)
        rewards, examples = self.rewards.read(context), self._fitting_questions(context)
        if rewards is not None and examples:
            with at("rewards"):
                rewards.check(examples)
            if self.rewards.accuracy is None and self.rewards.decides(rewards) is not None:
                say_deciding(self.whole, rewards)

    def _fitting_questions(self, context):
        """Return the held-out prompts that the policy answers."""
        read_conversations = self.held_out.read

        def make_examples():
            return held_out_prompts(self.whole, context.policy, read_conversations(context))

        return context.once("questions", make_examples)

    @override
    def programs(self, config, mesh, others):
        options, scores_answers = self.whole.answers, bool(self.whole.rewards)
        answering = AnswerPlan(options, options.num_prompts)
        return scored_answer_programs(self, config, mesh, answering, self.rewards, scores_answers)

    @override
    def run(self, context):
        rewards, examples = self.rewards.read(context), self._fitting_questions(context)
        answers = None
        with self.waiting(len(examples) or None):
            policy = context.load_start()
            if examples:
                answers = evaluate_both(
                    policy,
                    examples,
                    rewards,
                    self.whole.answers,
                    accuracy=self.rewards.decides(rewards),
                    seed=self.seed,
                )
            loss_of = conversation_loss(context, self.whole, self.held_out)
            return {"loss": loss_of(policy.params), "answers": answers}

    @override
    def scores(self, contents):
        answers = contents["answers"]
        scores = {} if answers is None else scores_of_both(answers)
        return {"held_out_loss": contents["loss"]["loss"]} | scores


def page(results: Results) -> Page:
    """Build the page, with answers to held-out questions."""
    answers = {name: measurement["answers"] for name, measurement in results.contents().items()}
    answers_by_task = {
        when: {} if stage_answers is None else {"": stage_answers}
        for when, stage_answers in answers.items()
    }
    return with_answers(run_page(results, "Fine-tuning"), answers_by_task)


def report(results: Results):
    """Print the tables and samples, and draw the curves; only process 0 draws."""
    settings, workdir, measurements = results.settings, results.folder, results.contents()
    console, before, after = make_console(), measurements["before"], measurements["after"]
    if first_process():
        metrics_path, curves_path = workdir / "metrics.jsonl", workdir / "curves.png"
        plot_curves(metrics_path, curves_path, phase="sft", names=CURVES)
    losses = [measurement["loss"]["loss"] for measurement in (before, after)]
    console.print(loss_table({"sft": (settings.sequence_length, *losses)}))
    tokens, conversations = after["loss"]["tokens"], after["loss"]["conversations"]
    console.print(f"over {tokens} tokens of {conversations} held-out conversations")
    if before["answers"] is not None:
        print_table(console, before["answers"], after["answers"])
        print_samples(console, before["answers"]["sampled"], after["answers"]["sampled"])
