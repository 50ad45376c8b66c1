"""The stages of R1 (arXiv:2501.12948, sections 2 and 3). Each reads results of earlier ones from disk."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from deepseek_jax.checkpoint import is_orbax, load_orbax, save_orbax
from deepseek_jax.checkpoint.folder import fingerprint, is_whole
from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.data.sources import read
from deepseek_jax.data.tasks import Task
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.distill.taught import learn_from_teachers
from deepseek_jax.distill.teachers import Teacher
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.models import how_to_run
from deepseek_jax.recipes.judge.run import check_lengths, judged_pairs, train_judge
from deepseek_jax.recipes.pretrain.train import base_documents, train_base
from deepseek_jax.recipes.r1.scores import measure, say_scores
from deepseek_jax.recipes.r1.settings import (
    REWARD_MODELS,
    SPECIALISTS,
    R1Settings,
    R1TeacherSettings,
)
from deepseek_jax.recipes.reward_model.data import load_preferences, with_ids
from deepseek_jax.recipes.reward_model.run import train_reward_model
from deepseek_jax.recipes.sft.data import check_conversations, packed, rows_of
from deepseek_jax.recipes.sft.run import fine_tune, packed_conversations
from deepseek_jax.recipes.start import starting_policy
from deepseek_jax.reinforce.grpo import reinforce
from deepseek_jax.reinforce.model_rewards import JUDGE, ModelRewardSettings, load_model_rewards
from deepseek_jax.reinforce.scenarios import ScenarioRewards, scenario_rewards
from deepseek_jax.rollout.policy import Policy, fitting, load_policy
from deepseek_jax.synthesis.rejection import read_accepted, sample_accepted
from deepseek_jax.training.lineage import measure_once, run_stage
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import named_tokenizer
from deepseek_jax.worlds.world import World, given_solution

# Stages take their seeds from their places here (_seed): a new name changes the seeds of a run
ORDER = ("base", "zero", "traces", "cold_start", "reasoning", "judge", "rejection", "judged", "sft")
ORDER += (*REWARD_MODELS, "scenarios")
# Stages that came later have seeds of their own, so that those of ORDER keep theirs
LATER, LATER_SEEDS = (*SPECIALISTS, "distilled"), 2**30


class Stage(NamedTuple):
    """A finished stage: its folder, and the hash of all its inputs."""

    name: str
    hash: str
    folder: Path


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages as methods: earlier Stages and examples in, a Stage out. Each runs once, see lineage.

    policy: all stages share it, except for its params. Examples, and the Tasks that hold them, are the
    world's, with their prompt_ids.
    """

    settings: R1Settings
    world: World
    policy: Policy
    run: Run

    def base(self):
        """The base: pre-trained on the world's corpus, or the checkpoint config.init_from."""
        settings = self.settings
        if settings.init_from is not None:
            # Not the architecture, which the checkpoint has to have
            how = how_to_run(settings.model)
            inputs = {"checkpoint": fingerprint(settings.init_from), "settings": how}
            return self._trained("base", inputs, lambda run: self._loaded().params)
        base, seed = settings.base, settings.seed

        def train(run):
            phase = run.of("pretrain", run.folder / "pretrain")
            return train_base(self.policy.config, base, self.policy.tokenizer, phase, seed)

        # The corpus itself is hashed: a world whose text changes has another base
        # In the folder where train_base looks for it: the corpus is built once
        documents = base_documents(base, self.run.folder / "base" / "data", seed)
        texts = [record["text"].decode() for record in read(documents, range(len(documents)))]
        inputs = {"settings": self.settings_of(base) | {"seed": seed}, "data": texts}
        return self._trained("base", inputs, train)

    def zero(self, base: Stage, reasoning: list):
        """R1-Zero: the base, reinforced by rules alone."""
        return self._reinforced("zero", base, reasoning)

    def traces(self, zero: Stage, reasoning: list):
        """accepted.jsonl: R1-Zero's completions that are right and readable: each thinks in one language."""
        return self._accepted("traces", zero, reasoning)

    def cold_start(self, base: Stage, traces: Stage, reasoning: Task, general: Task):
        """Dev1: the base, fine-tuned on R1-Zero's accepted traces and on solutions of some questions."""
        return self._fine_tuned("cold_start", base, [traces], reasoning, general)

    def reasoning(self, dev1: Stage, reasoning: list):
        """Dev2: Dev1, reinforced with rewards that include the language of the thought."""
        return self._reinforced("reasoning", dev1, reasoning)

    def judged_pairs(self):
        """The judge's training and held-out pairs: a Task. Raises ValueError where one does not fit a row."""
        settings = self._with_seed("judge")
        pairs = judged_pairs(settings, self.world, self.run.folder / "judge" / "data")
        with at("config.judge"):
            check_lengths(settings, self.policy, pairs, self.world)
        return pairs

    def judge(self, base: Stage, pairs: Task):
        """The judge of answers that no rule checks: the base, fine-tuned on pairs, judged_pairs' Task."""
        settings = self._with_seed("judge")

        def make(folder):
            # train_judge writes this file last
            if not (folder / "params" / JUDGE).exists():
                run = self.run.of("judge", folder)
                policy = self.trained(base)
                train_judge(settings, policy, pairs, self.world, run, self._tokenizer_name())

        inputs = {"settings": self.settings_of(settings), "parent": base.hash}
        data = [pairs.train, pairs.held_out]
        return self.make("judge", inputs | {"data": data}, make)

    def rejection(self, dev2: Stage, reasoning: list):
        """accepted.jsonl: Dev2's completions of reasoning questions, filtered by rules."""
        return self._accepted("rejection", dev2, reasoning)

    def judged(self, dev2: Stage, judge: Stage, general: list):
        """accepted.jsonl: Dev2's general answers that the judge rates at least as good as the reference."""
        # The last questions, because the fine-tunings learn the good answers of the first ones
        asked = general[-self.settings.judged.num_prompts :]
        return self._accepted("judged", dev2, asked, judge)

    def sft(self, base: Stage, accepted: list[Stage], reasoning: Task, general: Task):
        """Dev3: the base again, fine-tuned on the accepted completions and on solutions of some questions."""
        return self._fine_tuned("sft", base, accepted, reasoning, general)

    def preferences(self, name: str):
        """The records that one of REWARD_MODELS learns, training and held-out, and the same with their ids.
        Raises ValueError where none fits a row.
        """
        settings = self._with_seed(name)
        with at(f"config.{name}"):
            records = load_preferences(settings, self.world, self.run.folder / name / "data")
            kinds = zip(records, ("training", "held-out"), strict=True)
            return records, [with_ids(settings, self.policy, *part) for part in kinds]

    def reward_model(self, name: str, dev3: Stage, records, with_own_ids: list):
        """One of REWARD_MODELS. It starts from Dev3, whose training set had general questions. records,
        with_own_ids: of preferences.
        """
        settings = self._with_seed(name)

        def make(folder):
            if is_whole(folder / "params"):
                return
            run, policy = self.run.of(name, folder), self.trained(dev3)
            train_reward_model(settings, policy, with_own_ids, run, self._tokenizer_name())

        inputs = {"settings": self.settings_of(settings), "parent": dev3.hash}
        return self.make(name, inputs | {"data": records}, make)

    def scenarios(self, dev3: Stage, reward_models: list[Stage], reasoning: list, general: list):
        """R1: Dev3, reinforced by rules on reasoning questions, and in the last steps by the reward models on
        general ones too.
        """
        return self._reinforced("scenarios", dev3, reasoning, general, reward_models)

    def specialist(self, name: str, dev3: Stage, reward_models: list[Stage], examples: list):
        """One of SPECIALISTS: Dev3, reinforced on questions of its task alone."""
        return self._reinforced(name, dev3, examples, (), reward_models)

    def distilled(self, dev3: Stage, earlier: dict[str, Stage], questions: dict[str, list]):
        """R1 by V4's last stage: Dev3 learns from the teachers of its tasks on its own samples.

        earlier: the stages that may teach, by name. questions: task -> examples.
        """
        settings = self._with_seed("distilled")
        asked = {task: questions[task] for task in settings.prompts_per_step}

        def train(run):
            limit = settings.rollout.max_prompt_length
            fits = {task: fitting(examples, limit, task) for task, examples in asked.items()}
            teachers = {
                name: Teacher.waiting(self._teacher(teacher, earlier))
                for name, teacher in settings.teachers.items()
            }
            phase = run.within(run.folder / "checkpoints")
            return learn_from_teachers(settings, self.trained(dev3), teachers, fits, phase)

        inputs = {"settings": self.settings_of(settings), "parent": dev3.hash}
        taught = settings.teachers.items()
        inputs |= {f"teacher {name}": earlier[t.stage].hash for name, t in taught if t.stage}
        checkpoints = {name: fingerprint(t.path) for name, t in taught if t.path}
        return self._trained("distilled", inputs | {"data": [asked, checkpoints]}, train)

    def _teacher(self, teacher: R1TeacherSettings, earlier: dict[str, Stage]):
        """The Policy of a teacher."""
        if teacher.path is None:
            return self.trained(earlier[teacher.stage])
        tokenizer = teacher_tokenizer(teacher, self.policy.tokenizer)
        # Not the architecture, which the checkpoint has to have
        how, options = how_to_run(self.settings.model), dict(template=self.policy.template)
        return load_policy(teacher.path, how, self.run.mesh, tokenizer=tokenizer, **options)

    def measured(self, stage: Stage, reasoning: list, general: list):
        """The result of r1.scores.measure for a stage's policy. Measures once, and again where the hash of
        the stage or the evaluation has changed.
        """
        settings, seed = self.settings.evaluation, self.settings.seed

        def found():
            policy = self.trained(stage)
            scores = measure(policy, self.world, reasoning, general, settings, seed=seed)
            say_scores(stage.name, scores)
            return scores

        inputs = {"settings": self.settings_of(settings) | {"seed": seed}, "parent": stage.hash}
        inputs["data"] = [reasoning, general]
        return measure_once(self.run.folder, f"measured/{stage.name}", inputs, found)

    def trained(self, stage: Stage):
        """The Policy of a stage. Reads its params again on each call, because training donates them."""
        return self.policy.at(load_orbax(stage.folder / "params", mesh=self.run.mesh)[1])

    def settings_of(self, block):
        """A stage's settings for the lineage: its block, the model and the template."""
        return {
            "block": block,
            "model": self.policy.config,
            "template": self.policy.template,
        }

    def make(self, name: str, inputs: dict, make):
        """lineage.run_stage in this run's folder: -> Stage."""
        own = run_stage(self.run.folder, name, inputs, make)
        return Stage(name, own, self.run.folder / name)

    def _loaded(self):
        """The Policy of config.init_from."""
        return starting_policy(self.settings, self.run.mesh, self.policy.template)

    def _tokenizer_name(self):
        settings = self.settings
        return settings.init_from if settings.base is None else settings.base.corpus

    def _trained(self, name: str, inputs: dict, train):
        """A stage whose result is parameters: saves those that train(run) returns in folder/params."""

        def make(folder):
            # A run that was killed after this save calls make again
            if not is_orbax(folder / "params"):
                run = self.run.of(name, folder)
                save_orbax(folder / "params", self.policy.config, train(run))

        return self.make(name, inputs, make)

    def _reinforced(self, name: str, parent: Stage, reasoning, general=(), reward_models=()):
        """A stage of reinforcement. general: the questions of settings.general."""
        settings, paying = self._with_seed(name), self.settings.models_for(name)
        reward_models = [model for model in reward_models if model.name in paying]

        def train(run):
            limit = settings.rollout.max_prompt_length
            # fitting raises for an empty list, which a stage without general questions has
            asked = [fitting(e, limit, "training") if e else e for e in (reasoning, general)]
            buffer = self.policy.config.expert_buffer
            models = load_model_rewards(_paths(reward_models), run.mesh, buffer)
            with scenario_rewards(settings, models) as paid:
                rewards = paid["reasoning"] if settings.general is None else ScenarioRewards(paid)
                # train wants a folder of checkpoints alone; the stage has stage.json and params beside them
                phase = run.within(run.folder / "checkpoints")
                policy, (questions, requests) = self.trained(parent), asked
                return reinforce(settings, policy, questions, rewards, phase, requests)

        inputs = {"settings": self.settings_of(settings), "parent": parent.hash}
        inputs |= {model.name: model.hash for model in reward_models}
        return self._trained(name, inputs | {"data": [reasoning, general]}, train)

    def _accepted(self, name: str, parent: Stage, examples: list, judge: Stage | None = None):
        """A stage whose result is accepted.jsonl: the accepted completions of the policy of `parent`."""
        settings, seed = getattr(self.settings, name), self._seed(name)
        asked = examples[: settings.num_prompts]
        judges = [] if judge is None else [judge]

        def make(folder):
            # sample_accepted writes the file whole: if it exists, it is complete
            path = folder / "accepted.jsonl"
            if path.exists():
                return
            buffer = self.policy.config.expert_buffer
            models = load_model_rewards(_paths(judges), self.run.mesh, buffer)
            rule = self.world.questions[self.world.reasoning].rule
            how = dict(rule=rule, seed=seed, judge=models.get("judge"))
            with at(f"config.{name}"):
                sample_accepted(settings, self.trained(parent), asked, path, **how)

        inputs = {"settings": self.settings_of(settings) | {"seed": seed}, "parent": parent.hash}
        inputs |= {stage.name: stage.hash for stage in judges}
        return self.make(name, inputs | {"data": asked}, make)

    def _fine_tuned(
        self, name: str, base: Stage, sampled: list[Stage], reasoning: Task, general: Task
    ):
        """A stage of fine-tuning, on the accepted completions of the stages `sampled` and on solutions of
        data.num_puzzles reasoning questions and data.num_requests general ones.

        The held-out loss is measured on solutions of held-out reasoning questions.
        """
        settings = self._with_seed(name)
        accepted = [e for stage in sampled for e in read_accepted(stage.folder / "accepted.jsonl")]
        conversations = worked_conversations(accepted, given_solution)
        conversations += self._worked(
            self.world.reasoning, reasoning.train[: settings.data.num_puzzles]
        )
        conversations += self._worked(
            self.world.general, general.train[: settings.data.num_requests]
        )

        def train(run):
            rows = rows_of(settings)
            with at(f"config.{name}"):
                check_conversations(self.policy, conversations, f"{name} training", rows)
            held_out = self._worked(self.world.reasoning, reasoning.held_out)
            whole = rows_of(settings, held_out=True)
            batches = list(packed(settings, self.policy, held_out, whole, num_epochs=1))
            loss_of = ConversationLoss(self.policy.config, batches, run.mesh)
            source = packed_conversations(settings, self.policy, conversations, loss_of, run.mesh)
            phase = run.within(run.folder / "checkpoints")
            return fine_tune(settings, self.trained(base), source, phase)

        inputs = {"settings": self.settings_of(settings), "parent": base.hash}
        inputs |= {stage.name: stage.hash for stage in sampled}
        data = [[m["content"] for m in c["messages"]] for c in conversations]
        return self._trained(name, inputs | {"data": data}, train)

    def _worked(self, name: str | None, examples: list):
        """Conversations in which the world's solutions answer examples of its questions `name`."""
        return worked_conversations(examples, self.world.questions[name].worked) if examples else []

    def _with_seed(self, name: str):
        return dataclasses.replace(getattr(self.settings, name), seed=self._seed(name))

    def _seed(self, name: str):
        """A stage's own seed, so that no two stages draw alike."""
        # Seeds of runs are len(ORDER) apart, so stages of two runs do not share one either
        if name in LATER:
            return LATER_SEEDS + len(LATER) * self.settings.seed + LATER.index(name)
        return len(ORDER) * self.settings.seed + ORDER.index(name)


def teacher_tokenizer(teacher: R1TeacherSettings, tokenizer: Tokenizer):
    """The Tokenizer of a teacher. tokenizer: the student's.

    Raises ValueError for the name of one beside a checkpoint that has its own.
    """
    if teacher.path is None:
        return tokenizer
    if is_orbax(teacher.path):
        return tokenizer if teacher.tokenizer is None else named_tokenizer(teacher.tokenizer)
    if teacher.tokenizer is not None:
        raise ValueError(
            f"tokenizer={teacher.tokenizer!r}: the checkpoint {teacher.path} has a tokenizer of its own; "
            "leave it out"
        )
    return named_tokenizer(teacher.path)


def _paths(stages):
    """Stage name -> ModelRewardSettings that reads the stage's params."""
    return {stage.name: ModelRewardSettings(str(stage.folder / "params")) for stage in stages}
