"""The stages of R1 (arXiv:2501.12948, sections 2 and 3), each from the results of earlier ones to its own."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_orbax, load_orbax, save_orbax
from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.data.sources import read
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.recipes.judge import check_lengths, judged_pairs, train_judge
from deepseek_jax.recipes.pretrain.run import base_documents, train_base
from deepseek_jax.recipes.r1.settings import REWARD_MODELS, TEMPLATE, R1Settings
from deepseek_jax.recipes.reward_model.data import load_preferences, with_ids
from deepseek_jax.recipes.reward_model.run import train_reward_model
from deepseek_jax.recipes.sft.data import check_conversations, packed, rows_of
from deepseek_jax.recipes.sft.run import fine_tune, packed_conversations
from deepseek_jax.reinforce.model_rewards import JUDGE, ModelRewardSettings, load_model_rewards
from deepseek_jax.reinforce.scenarios import ScenarioRewards, scenario_questions, scenario_rewards
from deepseek_jax.reinforce.update import fitting, reinforce
from deepseek_jax.synthesis.rejection import read_accepted, sample_accepted
from deepseek_jax.training.lineage import run_stage
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.worlds.world import given_solution

ORDER = ("base", "zero", "traces", "cold_start", "reasoning", "judge", "rejection", "judged", "sft")
ORDER += (*REWARD_MODELS, "scenarios")


class Stage(NamedTuple):
    """What a stage has made: its folder, and the hash of all that went into it."""

    name: str
    hash: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages as methods: earlier Stages and examples in, a Stage out; done once each, see lineage.

    Examples, and the Tasks that hold them, are those of worlds.bilingual.tasks, with their prompt_ids.
    """

    settings: R1Settings
    policy: ModelConfig
    tokenizer: Tokenizer
    mesh: Mesh
    workdir: Path
    writer: MetricsWriter
    should_stop: Callable

    def base(self):
        """Pre-trained on the small world's corpus."""
        base, seed = self.settings.base, self.settings.seed

        def train(folder):
            running = dict(writer=self.writer, should_stop=self.should_stop)
            return train_base(
                self.policy, base, self.tokenizer, self.mesh, folder, seed=seed, **running
            )

        documents = base_documents(base, self.workdir / "base" / "data", seed)
        texts = [record["text"].decode() for record in read(documents, range(len(documents)))]
        inputs = {"settings": self.settings_of(base) | {"seed": seed}, "data": texts}
        return self._trained("base", inputs, train)

    def zero(self, base, puzzles):
        """R1-Zero: nothing but reinforcement, by rules."""
        return self._reinforced("zero", base, puzzles)

    def traces(self, zero, puzzles):
        """accepted.jsonl: R1-Zero's completions that are right and readable: each thought in one language."""
        return self._accepted("traces", zero, puzzles)

    def cold_start(self, base, traces, puzzles, requests):
        """Dev1: the base on R1-Zero's readable traces, and solutions of so many puzzles and requests."""
        return self._fine_tuned("cold_start", base, [traces], puzzles, requests)

    def reasoning(self, dev1, puzzles):
        """Dev2: reinforcement, whose rewards count the language of the thought too."""
        return self._reinforced("reasoning", dev1, puzzles)

    def judged_pairs(self):
        """What the judge learns from: a Task of pairs. Raises ValueError where one does not fit a row."""
        settings = self._with_seed("judge")
        pairs = judged_pairs(settings, self.workdir / "judge" / "data")
        check_lengths(settings, self.tokenizer, pairs, "config.judge")
        return pairs

    def judge(self, base, pairs):
        """The judge of answers that no rule checks: the base, taught to compare two. pairs: judged_pairs'."""
        settings = self._with_seed("judge")
        start = dict(tokenizer=self.tokenizer, tokenizer_name=self.settings.base.corpus)
        running = dict(phase="judge", writer=self.writer, should_stop=self.should_stop)

        def make(folder):
            if (folder / "params" / JUDGE).exists():
                return
            params = self.params(base)
            train_judge(settings, self.policy, params, pairs, self.mesh, folder, **start, **running)

        inputs = {"settings": self.settings_of(settings), "parent": base.hash}
        data = [pairs.train, pairs.held_out]
        return self.make("judge", inputs | {"data": data}, make)

    def rejection(self, dev2, puzzles):
        """accepted.jsonl: those of Dev2's completions of puzzles that are worth learning."""
        return self._accepted("rejection", dev2, puzzles)

    def judged(self, dev2, judge, requests):
        """accepted.jsonl: those of Dev2's answers to requests that the judge finds as good as the reference.
        The last requests are asked: the first ones are those whose good answers are shown.
        """
        asked = requests[-self.settings.judged.num_prompts :]
        return self._accepted("judged", dev2, asked, judge)

    def sft(self, base, rejection, judged, puzzles, requests):
        """Dev3: the base again, on what was accepted and on good answers to requests."""
        return self._fine_tuned("sft", base, [rejection, judged], puzzles, requests)

    def reward_model(self, name, dev3):
        """One of REWARD_MODELS, from the policy that has seen requests: which answers are better, or safe."""
        settings = self._with_seed(name)
        records = load_preferences(settings, self.workdir / name / "data")

        def make(folder):
            if (folder / "params").exists():
                return
            with at(f"config.{name}"):
                train, held_out = (
                    with_ids(settings, self.policy, self.tokenizer, part, kind)
                    for part, kind in zip(records, ("training", "held-out"), strict=True)
                )
            train_reward_model(
                settings,
                self.policy,
                self.params(dev3),
                self.settings.base.corpus,
                train,
                held_out,
                self.mesh,
                folder,
                phase=name,
                writer=self.writer,
                should_stop=self.should_stop,
            )

        inputs = {"settings": self.settings_of(settings), "parent": dev3.hash}
        return self.make(name, inputs | {"data": records}, make)

    def scenarios(self, dev3, reward_models, puzzles, requests):
        """R1: reinforcement on puzzles, by rules, and in the last steps on requests as well, by the reward
        models. reward_models: the Stages of REWARD_MODELS.
        """
        return self._reinforced("scenarios", dev3, puzzles, requests, reward_models)

    def params(self, stage):
        """A stage's parameters, read anew: whoever trains them uses them up."""
        return load_orbax(stage.folder / "params", mesh=self.mesh)[1]

    def settings_of(self, block):
        """A block's numbers, and the model that they are about, for the lineage."""
        return {"block": block, "model": self.policy, "template": TEMPLATE}

    def make(self, name, inputs, make):
        """run_stage in this run's folder: -> Stage."""
        own = run_stage(self.workdir, name, inputs, make)
        return Stage(name, own, self.workdir / name)

    def _trained(self, name, inputs, train):
        """A stage whose result is parameters: what train(folder) returns, in folder/params."""

        def make(folder):
            if not is_orbax(folder / "params"):
                save_orbax(folder / "params", self.policy, train(folder))

        return self.make(name, inputs, make)

    def _reinforced(self, name, parent, puzzles, requests=(), reward_models=()):
        """A stage of reinforcement: settings.general's questions are the requests."""
        settings = self._with_seed(name)

        def train(folder):
            asked = (_asked(e, settings) if e else e for e in (puzzles, requests))
            with scenario_rewards(
                settings, load_model_rewards(_paths(reward_models), self.mesh)
            ) as rewards:
                return reinforce(
                    settings,
                    self.policy,
                    self.tokenizer,
                    self.params(parent),
                    scenario_questions(settings, *asked),
                    ScenarioRewards(rewards),
                    self.mesh,
                    folder / "checkpoints",
                    phase=name,
                    writer=self.writer,
                    should_stop=self.should_stop,
                )

        inputs = {"settings": self.settings_of(settings), "parent": parent.hash}
        inputs |= {model.name: model.hash for model in reward_models}
        return self._trained(name, inputs | {"data": [puzzles, requests]}, train)

    def _accepted(self, name, parent, examples, judge=None):
        """A stage whose result is accepted.jsonl, of a policy's completions. judge: the Stage of one."""
        settings, seed = getattr(self.settings, name), self._seed(name)
        asked = examples[: settings.num_prompts]
        judges = [] if judge is None else [judge]

        def make(folder):
            path = folder / "accepted.jsonl"
            if path.exists():
                return
            models = load_model_rewards(_paths(judges), self.mesh)
            options = dict(seed=seed, judge=models.get("judge"))
            policy, params = self.policy, self.params(parent)
            with at(f"config.{name}"):
                sample_accepted(settings, policy, params, self.tokenizer, asked, path, **options)

        inputs = {"settings": self.settings_of(settings) | {"seed": seed}, "parent": parent.hash}
        inputs |= {stage.name: stage.hash for stage in judges}
        return self.make(name, inputs | {"data": asked}, make)

    def _fine_tuned(self, name, base, sampled, puzzles, requests):
        """Learn from what was accepted in the stages `sampled`, and from solutions of as many puzzles and
        requests as the config names; the held-out loss is of held-out puzzles'.
        """
        settings = self._with_seed(name)
        examples = [e for stage in sampled for e in read_accepted(stage.folder / "accepted.jsonl")]
        examples += puzzles.train[: settings.data.num_puzzles]
        examples += requests.train[: settings.data.num_requests]

        def train(folder):
            conversations = worked_conversations(examples, given_solution)
            _, shares = batch_share(self.mesh)
            checked = self.policy, self.tokenizer, conversations, f"{name} training", shares
            check_conversations(*checked, rows_of(settings), f"config.{name}")
            held_out = worked_conversations(puzzles.held_out, given_solution)
            batches = packed(settings, self.tokenizer, held_out, num_epochs=1)
            loss_of = ConversationLoss(self.policy, list(batches), self.mesh)
            return fine_tune(
                settings,
                self.policy,
                self.params(base),
                packed_conversations(settings, self.tokenizer, conversations, loss_of, self.mesh),
                self.mesh,
                folder / "checkpoints",
                writer=self.writer,
                should_stop=self.should_stop,
                phase=name,
            )

        inputs = {"settings": self.settings_of(settings), "parent": base.hash}
        inputs |= {stage.name: stage.hash for stage in sampled}
        data = [[example["question"], example["solution"]] for example in examples]
        return self._trained(name, inputs | {"data": data}, train)

    def _with_seed(self, name):
        return dataclasses.replace(getattr(self.settings, name), seed=self._seed(name))

    def _seed(self, name):
        """A seed of a stage's own, so that its questions and draws are not those of another."""
        return len(ORDER) * self.settings.seed + ORDER.index(name)


def _paths(stages):
    """{NAME: ModelRewardSettings} of what these stages left."""
    return {stage.name: ModelRewardSettings(str(stage.folder / "params")) for stage in stages}


def _asked(examples, settings):
    """The examples whose prompts are not too long for this stage."""
    return fitting(examples, settings.rollout, "training")
