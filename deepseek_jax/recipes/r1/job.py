"""What the stages of R1 share: a world's questions, one tokenizer and one template."""

import contextlib
import dataclasses
import functools

from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.data.tasks import Task
from deepseek_jax.errors import at
from deepseek_jax.models import build_model, how_to_run
from deepseek_jax.named_code import code_digests, digest_of
from deepseek_jax.recipes.job import LineageJob, Work
from deepseek_jax.recipes.kinds.accept import ACCEPT, accepted_by
from deepseek_jax.recipes.kinds.judge import TRAIN_JUDGE, judged_pairs
from deepseek_jax.recipes.kinds.prefer import PREFER
from deepseek_jax.recipes.kinds.preferences import load_preferences, with_ids
from deepseek_jax.recipes.kinds.pretrain import PRETRAIN
from deepseek_jax.recipes.kinds.reinforce import REINFORCE
from deepseek_jax.recipes.kinds.tune import TUNE, check_conversations, held_out_loss, rows_of
from deepseek_jax.recipes.r1.scores import measure, say_scores
from deepseek_jax.recipes.r1.settings import SPECIALISTS, R1Settings, R1TeacherSettings
from deepseek_jax.recipes.stage import Answering, Stage
from deepseek_jax.recipes.start import base_corpus, planned_model, starting_policy
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import say_deciding, scenario_rewards
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rollout.policy import Policy, check_vocabulary, load_policy
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.worlds.own import own_world
from deepseek_jax.worlds.registry import find_world, named_tokenizer
from deepseek_jax.worlds.world import given_solution

# The folder of the measurements
MEASURED = "measured/"


class R1Job(LineageJob):
    """All policies have one tokenizer and one template."""

    settings: R1Settings

    @functools.cached_property
    def world(self):
        """The World of config.world, or that of the user's own data."""
        data = self.settings.data
        if data is None:
            return find_world(self.settings.world)
        with at("data"):
            return own_world(data.reasoning, data.rule, data.general, template=data.template)

    @functools.cached_property
    def policy(self):
        """The Policy that all stages share, without params."""
        settings, template = self.settings, self.world.template
        if settings.init_from is not None:
            # The params are dropped, because each stage reads its own from disk
            return starting_policy(settings, self.mesh, template).at(None)
        config, tokenizer = build_model(settings.model), named_tokenizer(settings.base.corpus)
        check_vocabulary(config, tokenizer)
        return Policy(config, None, tokenizer, template)

    def task(self, kind: str):
        """The Task of the world's reasoning or general questions; an empty one where there are none."""
        world, held_out = self.world, self.settings.evaluation
        names = {
            "reasoning": (world.reasoning, held_out.num_puzzles),
            "general": (world.general, held_out.num_requests),
        }
        name, number = names[kind]
        return (
            Task([], []) if name is None else world.questions[name].task(self.settings.seed, number)
        )

    @functools.cached_property
    def questions_of(self):
        """{"reasoning": Task, "general": Task}."""
        return {kind: self.task(kind) for kind in ("reasoning", "general")}

    def begin(self):
        if self.run is None:
            return self._planned
        return self.policy, self.questions_of

    def path_of(self, stage: Stage):
        return "evaluation" if stage.kind.is_measure else super().path_of(stage)

    def settings_of(self, stage: Stage):
        block = getattr(self.settings, self.path_of(stage))
        if not hasattr(block, "seed"):
            return block
        return dataclasses.replace(block, seed=self.seed_of(stage))

    def config_of(self, stage: Stage):
        return self.policy.config if self.run is not None else self._planned

    @functools.cached_property
    def _planned(self):
        return planned_model(self.settings.model, self.settings.init_from)

    def prefix_of(self, stage: Stage):
        return "evaluation: " if stage.kind.is_measure else super().prefix_of(stage)

    def about(self, block):
        more = {"model": self.policy.config, "template": self.policy.template}
        return {"block": block, "code": code_digests(block)} | more

    def load(self, name: str):
        params = load_orbax(self.made[name].folder / "params", mesh=self.mesh)[1]
        return self.policy.at(params)

    def load_to_answer(self, name: str):
        """The policy that a stage left."""
        return self.load(name)

    def sampling_dtype(self, work: Work):
        """The dtype of the parameters that sample: a stage's, as they were trained."""
        return "float32"

    def base_path(self):
        """No stage trains beside an adapter."""

    # The base

    def phase_of(self, stage: Stage):
        if stage.kind is PRETRAIN:
            return self.run.of("pretrain", self.run.folder / stage.name / "pretrain")
        if stage.kind in (PREFER, TRAIN_JUDGE):
            return self.run.of(stage.name)
        return super().phase_of(stage)

    def pretraining_name(self, work: Work):
        """The name of a base's program."""
        return "pretrain"

    def corpus(self, work: Work):
        """The world's documents."""
        settings, folder = self.settings, work.phase.folder
        return base_corpus(settings.base, self.policy.tokenizer, folder, settings.seed)

    def policy_of(self, work: Work, params):
        return self.policy.at(params)

    def given(self, work: Work):
        """The policy of config.init_from."""
        return starting_policy(self.settings, self.mesh, self.policy.template)

    def checkpoint_of(self, work: Work):
        """(path, block of the model) of config.init_from."""
        return self.settings.init_from, self.settings.model

    # Questions, and what pays for their answers

    def asked(self, work: Work):
        """The questions of a stage: a list for rejection sampling, else a dict by kind."""
        reasoning, general = (self.questions_of[kind].train for kind in ("reasoning", "general"))
        if work.stage.kind is ACCEPT:
            number = work.settings.num_prompts
            # With a judge the last general ones, because the fine-tunings learn the answers of the first ones
            return general[len(general) - number :] if work.stage.reads else reasoning[:number]
        if hasattr(work.settings, "teachers"):
            both = {"reasoning": reasoning, "general": general}
            return {task: both[task] for task in work.settings.prompts_per_step}
        if SPECIALISTS.get(self.path_of(work.stage)) == "general":
            return {"reasoning": general, "general": []}
        return {"reasoning": reasoning, "general": general if work.settings.general else []}

    def questions(self, work: Work):
        """Those of `asked` that fit, by kind."""
        limit = work.settings.rollout.limit()
        with at("rollout"):
            return {
                kind: self.policy.ask(examples, limit) if examples else []
                for kind, examples in self.asked(work).items()
            }

    def models(self, work: Work):
        """{reward's name: ModelRewardSettings} of the reward models and judges that a stage reads."""
        found = {}
        if work.stage.kind not in (REINFORCE, ACCEPT):
            return found
        for name in work.stage.reads:
            length = getattr(getattr(self.settings, name), "max_completion_length", None)
            path = "" if self.run is None else str(self.run.folder / name / "params")
            found[name] = ModelRewardSettings(path, max_completion_length=length)
        return found

    @contextlib.contextmanager
    def rewards(self, work: Work):
        """A context with the rewards of a stage's scenarios, see scenario_rewards."""
        models = load_model_rewards(self.models(work), self.mesh, self.policy.config.expert_buffer)
        with scenario_rewards(work.settings, models) as paid:
            yield paid

    def check_rewards(self, work: Work):
        """Raise ValueError for a reward that is not there, and for one that cannot score the questions. The
        names of reward models are enough for it.
        """
        with scenario_rewards(work.settings, dict.fromkeys(work.stage.reads)) as paid:
            with at("rewards"):
                paid["reasoning"].check(self.asked(work)["reasoning"])
            say_deciding(work.settings, paid["reasoning"])

    def rule(self):
        """The reward that says whether an answer to a reasoning question is right."""
        return self.world.questions[self.world.reasoning].rule

    # Texts to learn from

    def learned(self, work: Work):
        """What earlier stages have accepted, and the world's solutions of the first questions."""
        data = work.settings.data
        found = worked_conversations(accepted_by(self.made, work.stage.reads), given_solution)
        for kind, number in (("reasoning", data.num_puzzles), ("general", data.num_requests)):
            found += self._worked(kind, self.questions_of[kind].train[:number])
        return found

    def conversations(self, work: Work):
        """(training conversations, the ConversationLoss of solutions of held-out reasoning questions)."""
        conversations = self.learned(work)
        with work.at():
            rows = rows_of(work.settings)
            check_conversations(self.policy, conversations, f"{work.name} training", rows)
        held_out = self._worked("reasoning", self.questions_of["reasoning"].held_out)
        return conversations, held_out_loss(work.settings, self.policy, held_out, self.mesh)

    def _worked(self, kind: str, examples: list):
        """Conversations in which the world's solutions answer the examples."""
        if not examples:
            return []
        name = self.world.reasoning if kind == "reasoning" else self.world.general
        return worked_conversations(examples, self.world.questions[name].worked)

    def check_conversations(self, work: Work):
        """Raise ValueError where a fine-tuning needs more questions than there are."""
        for kind, field in (("reasoning", "num_puzzles"), ("general", "num_requests")):
            number, there = getattr(work.settings.data, field), len(self.questions_of[kind].train)
            with at("data"):
                _check_available(field, number, there, f"{kind} questions")

    def check_prompts(self, work: Work):
        """Raise ValueError where rejection sampling needs more questions than there are for it."""
        what, there = "reasoning questions", len(self.questions_of["reasoning"].train)
        if work.stage.reads:
            tuned = (each.settings.data for each in self.works() if each.stage.kind is TUNE)
            learned = max(data.num_requests for data in tuned)
            there = len(self.questions_of["general"].train) - learned
            what = "general questions whose answers are not learned from"
        _check_available("num_prompts", work.settings.num_prompts, there, what)
        self.policy.ask(self.asked(work), Limit(work.settings.max_completion_length))

    def pairs(self, work: Work):
        """The judge's training and held-out pairs: a Task."""
        folder = work.folder / "data"
        return self.once(work, "pairs", lambda: judged_pairs(work.settings, self.world, folder))

    def preferences(self, work: Work):
        """The records that a reward model learns, (training, held-out)."""
        folder = work.folder / "data"
        return self.once(
            work, "records", lambda: load_preferences(work.settings, self.world, folder)
        )

    def preferences_with_ids(self, work: Work):
        """The same with their ids. Raises ValueError where none fits a row."""
        kinds = zip(self.preferences(work), ("training", "held-out"), strict=True)
        return self.once(
            work, "ids", lambda: [with_ids(work.settings, self.policy, *part) for part in kinds]
        )

    # Teachers

    def check_teacher(self, teacher: R1TeacherSettings):
        """Raise ValueError where there is no checkpoint at a teacher's path."""
        if teacher.path is not None:
            check_checkpoint(teacher.path)

    def teacher_config(self, teacher: R1TeacherSettings):
        """The ModelConfig of a teacher."""
        if teacher.path is None:
            return self._planned if self.run is None else self.policy.config
        # Not the architecture, which the checkpoint has to have
        return planned_model(how_to_run(self.settings.model), teacher.path, "path")

    def teacher_tokenizer(self, teacher: R1TeacherSettings):
        """The Tokenizer of a teacher."""
        return self.policy.tokenizer if teacher.path is None else named_tokenizer(teacher.path)

    def load_teacher(self, teacher: R1TeacherSettings):
        """The Policy of a teacher."""
        if teacher.path is None:
            return self.load(teacher.stage)
        return load_policy(
            teacher.path,
            # Not the architecture, which the checkpoint has to have
            how_to_run(self.settings.model),
            self.mesh,
            template=self.policy.template,
        )

    # Measuring

    def check_measured_data(self, work: Work):
        """Raise ValueError where answers exceed the model's positions."""
        self._held_out(work)

    def _held_out(self, work: Work):
        """(reasoning, general) held-out questions with their prompts."""
        limit = Limit(work.settings.max_completion_length)
        tasks = (self.questions_of[kind] for kind in ("reasoning", "general"))
        return [self.policy.ask(task.held_out, limit, "held-out") for task in tasks]

    def measured_inputs(self, work: Work):
        """The held-out questions."""
        rule = self.rule()
        settings = self.about(work.settings) | {"rule": [rule, digest_of(rule)]}
        settings |= {"seed": self.settings.seed}
        data = [self.questions_of[kind].held_out for kind in ("reasoning", "general")]
        return {"settings": settings, "data": data}

    def answering(self, work: Work):
        asked = work.settings
        return Answering(asked, max(asked.num_puzzles, asked.num_requests), asked.samples)

    def count_measured(self, work: Work):
        return sum(len(self.questions_of[kind].held_out) for kind in ("reasoning", "general"))

    def measure(self, work: Work):
        """The result of r1.scores.measure for a stage's policy."""
        reasoning, general = self._held_out(work)
        scores = measure(
            work.start(), self.world, reasoning, general, work.settings, seed=self.settings.seed
        )
        say_scores(work.stage.start, scores)
        return scores

    def scores_of(self, result):
        return result["scores"]


def _check_available(field: str, number: int, available: int, what: str):
    if not 0 <= number <= available:
        raise ValueError(f"{field}={number} must be within 0..{available}, the {what} to train on")
