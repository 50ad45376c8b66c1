"""What the stages of a distillation share: the tasks' texts, and lines of policies, each of its own model."""

import dataclasses
import functools
import json

from deepseek_jax.checkpoint import is_adapter, save_adapter
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.errors import at
from deepseek_jax.files import as_path, read_json, write_whole
from deepseek_jax.models import check_architecture, how_to_run
from deepseek_jax.models.adapters import Adapted, with_adapter
from deepseek_jax.named_code import code_digests, digest_of
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.distill.scores import answer_tasks, first_answers, intervals, say_shares
from deepseek_jax.recipes.distill.settings import DistillSettings, StartSettings, TeacherSettings
from deepseek_jax.recipes.distill.student import StudentRun
from deepseek_jax.recipes.distill.tasks import (
    file_tasks,
    texts_hash,
    transfer_tasks,
    world_tasks,
)
from deepseek_jax.recipes.job import LineageJob, Work
from deepseek_jax.recipes.kinds.accept import accepted_by
from deepseek_jax.recipes.kinds.tune import check_conversations, held_out_loss, rows_of
from deepseek_jax.recipes.stage import Answering, Stage
from deepseek_jax.recipes.start import base_corpus, frozen, planned_model
from deepseek_jax.reinforce.scenarios import scenario_rewards
from deepseek_jax.rollout.policy import Policy, check_room, check_vocabulary, load_policy
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.worlds.registry import find_world, named_tokenizer

MEASURED, STARTS, STUDENTS, REINFORCED = "measured/", "starts/", "students/", "reinforced/"
TEACHER, TEACHER_BASE, TEXT = "teacher", "teacher_base", "text"
SAMPLES = "samples.json"  # answers in the folder of a measurement, for the page
BESIDE = 4  # policies whose answers the page has side by side
FEWEST = 2  # held-out questions of the world where config.evaluation is None


class DistillJob(LineageJob):
    """The stages of a line, such as a student and its start, have one model, tokenizer and template."""

    settings: DistillSettings

    # The texts

    @functools.cached_property
    def world(self):
        """The World of config.world."""
        return find_world(self.settings.world)

    @functools.cached_property
    def questions_of(self):
        """{name of the world's questions: Task}."""
        evaluation = self.settings.evaluation
        number = FEWEST if evaluation is None else evaluation.num_questions
        return world_tasks(self.world, self.settings.seed, number)

    @functools.cached_property
    def of_files(self):
        """{task: TransferTask} of those with files of their own."""
        return file_tasks(self.settings, self.run.folder / "data")

    @functools.cached_property
    def tasks(self):
        """{task: TransferTask}, with the teacher's accepted answers, which have to be there."""
        accepted = None
        if TEXT in self.made:
            accepted = accepted_by(self.made, [TEXT])
        return transfer_tasks(self.settings, self.world, self.questions_of, accepted, self.of_files)

    @functools.cached_property
    def texts_hash(self):
        """A hash that changes with the tasks' texts."""
        answers = self.made[TEXT].hash if TEXT in self.made else None
        return texts_hash(self.settings, answers)

    @property
    def puzzles(self):
        """The Task of the world's reasoning questions."""
        return self.questions_of[self.world.reasoning]

    # The models

    def begin(self):
        if self.run is not None:
            self._check_starts()
        return [self.config_of(stage) for stage in self.stages]

    def check_shared_data(self):
        # Wrong files raise before the teacher is trained
        return self.of_files

    def block_of(self, stage: Stage) -> StartSettings | TeacherSettings:
        """The block of the config that names the model of a stage's line."""
        root = self.root_of(stage)
        if root.name in (TEACHER, TEACHER_BASE):
            return self.settings.teacher
        return self.settings.starts[root.name.removeprefix(STARTS)]

    def root_of(self, stage: Stage):
        """The first stage of a line."""
        return stage if not stage.start else self.root_of(self._stage(stage.start))

    def _stage(self, name: str):
        return next(stage for stage in self.stages if stage.name == name)

    def checkpoint_of(self, work: Work):
        """(path, block of the model) of a given checkpoint."""
        block = self.block_of(work.stage)
        return _path(block), block.model

    def given(self, work: Work):
        """Stays where it is."""

    def read_with(self, work: Work):
        block = self.block_of(work.stage)
        positions = getattr(block, "max_position_embeddings", None)
        # A checkpoint has its own
        tokenizer = block.tokenizer if _path(block) is None else None
        return {"tokenizer": tokenizer, "max_position_embeddings": positions}

    @functools.cached_property
    def _configs(self):
        return {}

    def config_of(self, stage: Stage):
        root = self.root_of(stage)
        if root.name not in self._configs:
            block = self.block_of(stage)
            field = _path_field(root)
            with at(self.path_of_block(root)):
                self._configs[root.name] = planned_model(block.model, _path(block), field)
        config = self._configs[root.name]
        positions = getattr(self.block_of(stage), "max_position_embeddings", None)
        # They are for what is learned; answers have the checkpoint's own
        if positions is None or stage.kind == "measure":
            return config
        return dataclasses.replace(config, max_position_embeddings=positions)

    def path_of_block(self, root: Stage):
        """The dotted path of the block that names the model of a line."""
        return "teacher" if root.name in (TEACHER, TEACHER_BASE) else root.name.replace("/", ".")

    def _check_starts(self):
        """Raise ValueError for a checkpoint that is not there, and for a tokenizer of other tokens."""
        for stage in self.stages:
            if stage.start:
                continue
            block = self.block_of(stage)
            path, field = _path(block), _path_field(stage)
            with at(self.path_of_block(stage)):
                if path is not None:
                    with at(field):
                        check_checkpoint(path)
                        stored = read_any_config(path)
                    check_architecture(block.model, stored, path)
                else:
                    with at("tokenizer"):
                        tokenizer = named_tokenizer(block.tokenizer)
                    check_vocabulary(self.config_of(stage), tokenizer)

    def load(self, name: str, *, trained: bool = True, learns: bool | None = None, mesh=None):
        """The Policy that a stage left. trained: all of its parameters, see load_policy. learns: whether the
        policy is trained at all, at its start's own positions; default trained. Beside an adapter it learns
        and is not trained. mesh: in place of the run's.
        """
        stage = self._stage(name)
        block, adapter = self.block_of(stage), self.run.folder / name / "adapter"
        path = self.path_of_params(name)
        if is_adapter(adapter):
            policy = self.load(stage.start, trained=trained, learns=learns, mesh=mesh)
            return policy.with_adapter_of(adapter, mesh or self.mesh)
        policy = load_policy(
            str(path),
            # A saved model is read with RunSettings, which have only some fields of its block
            block.model if _path(block) else how_to_run(block.model),
            mesh or self.mesh,
            template=self.settings.template,
            trained=trained,
        )
        positions = getattr(block, "max_position_embeddings", None)
        if positions is None or not (trained if learns is None else learns):
            return policy
        config = dataclasses.replace(policy.config, max_position_embeddings=positions)
        return dataclasses.replace(policy, config=config)

    def load_to_answer(self, name: str):
        """The Policy that a stage left, in its model's dtype."""
        return self.load(name, trained=False)

    def load_learner(self, work: Work):
        """The policy that a student starts from, as it trains it: all of it, or an adapter beside it."""
        adapter, start = work.settings.adapter, work.stage.start
        if adapter is None:
            return self.load(start)

        def read(mesh):
            return self.load(start, trained=False, learns=True, mesh=mesh)

        with work.at(), at("adapter"):
            policy = frozen(read, adapter, self.mesh)
            params = with_adapter(
                policy.config, policy.params, adapter, self.mesh, work.settings.seed
            )
        return policy.at(params)

    def save(self, work: Work, policy: Policy):
        if isinstance(policy.params, Adapted):
            base, target = self.path_of_params(work.stage.start), work.folder / "adapter"
            save_adapter(target, policy.config, policy.params, base, policy.files())
        else:
            super().save(work, policy)

    def path_of_params(self, name: str):
        """The path of the parameters that a stage left or stays at; beside an adapter, those of its start."""
        stage = self._stage(name)
        if stage.kind == "given":
            return as_path(_path(self.block_of(stage)))
        folder = self.run.folder / name
        return (
            self.path_of_params(stage.start)
            if is_adapter(folder / "adapter")
            else folder / "params"
        )

    def policy_of(self, work: Work, params):
        policy = self._without_params(work.stage)
        return dataclasses.replace(policy, config=work.config, params=params)

    def _without_params(self, stage: Stage):
        block = self.block_of(stage)
        return Policy(self.config_of(stage), None, self._tokenizer(block), self.settings.template)

    @staticmethod
    def _tokenizer(block):
        return named_tokenizer(_path(block) or block.tokenizer)

    # The stages

    def path_of(self, stage: Stage):
        name = stage.name
        if name.startswith(MEASURED):
            return "evaluation"
        if stage.kind == "pretrain":
            return f"{self.path_of_block(stage)}.base"
        return "teacher.fine_tune" if stage.kind == "tune" else name.replace("/", ".", 1)

    def model_path_of(self, stage: Stage):
        return f"{self.path_of_block(self.root_of(stage))}.model"

    def settings_of(self, stage: Stage):
        settings, (group, _, name) = self.settings, stage.name.partition("/")
        if stage.name.startswith(MEASURED):
            return settings.evaluation
        if stage.kind == "pretrain":
            return self.block_of(stage).base
        if stage.kind == "tune":
            return dataclasses.replace(settings.teacher.fine_tune, seed=settings.seed)
        if group in ("students", "reinforced"):
            return dataclasses.replace(getattr(settings, group)[name], seed=settings.seed)
        return settings.text if stage.kind == "accept" else self.block_of(stage)

    def prefix_of(self, stage: Stage):
        if stage.kind == "measure":
            return f"evaluation of {self._short(self.root_of(stage))}: "
        return f"{self._short(stage)}: "

    @staticmethod
    def _short(stage: Stage):
        """The name of a stage in the names of its programs and of its phase."""
        name = stage.name.rpartition("/")[2]
        return TEACHER if name == TEACHER_BASE else name

    def pretraining_name(self, work: Work):
        """The name of the program that pre-trains a start."""
        return f"{work.prefix}pretrain"

    def phase_of(self, stage: Stage):
        folder, name = self.run.folder / stage.name, stage.name.rpartition("/")[2]
        if stage.kind == "pretrain":
            return self.run.of(f"pretrain_{name}", folder / f"pretrain_{name}")
        # A student's folder has its teacher's cached targets too
        own = stage.name.startswith(STUDENTS)
        return self.run.of(name, folder if own else folder / "checkpoints")

    def adapter_of(self, stage: Stage):
        return getattr(self.settings_of(stage), "adapter", None)

    def about(self, block):
        more = {"template": self.settings.template, "seed": self.settings.seed}
        return {"block": block, "code": code_digests(block)} | more

    def corpus(self, work: Work):
        """The world's documents."""
        block = self.block_of(work.stage)
        return base_corpus(
            work.settings, self._tokenizer(block), work.phase.folder, self.settings.seed
        )

    # The teacher

    def learned(self, work: Work):
        """Conversations of the world's solutions, which a teacher is fine-tuned on."""
        world, data, found = self.world, work.settings.data, []
        for name, number in (
            (world.reasoning, data.num_puzzles),
            (world.general, data.num_requests),
        ):
            if name is not None:
                some = self.questions_of[name].train[:number]
                found += worked_conversations(some, world.questions[name].worked)
        return found

    def conversations(self, work: Work):
        """(training conversations, the ConversationLoss of solutions of held-out reasoning questions)."""
        policy, found = self._without_params(work.stage), self.learned(work)
        worked = self.world.questions[self.world.reasoning].worked
        held_out = worked_conversations(self.puzzles.held_out, worked)
        return found, held_out_loss(work.settings, policy, held_out, self.mesh)

    def check_conversations(self, work: Work):
        """Raise ValueError where no conversation of the teacher fits a row."""
        policy, rows = self._without_params(work.stage), rows_of(work.settings)
        check_conversations(policy, self.learned(work), "teacher's", rows)

    def sampling_dtype(self, work: Work):
        """The dtype of the parameters that sample."""
        return work.config.dtype

    def check_prompts(self, work: Work):
        """Raise ValueError where a puzzle and its answer exceed the teacher's positions."""
        policy = self._without_params(work.stage)
        policy.ask(self.asked(work), Limit(work.settings.max_completion_length))

    def rule(self):
        """The reward that says whether an answer to a puzzle is right."""
        return self.world.questions[self.world.reasoning].rule

    # Students

    def teacher_config(self, work: Work):
        """The ModelConfig of the teacher of a student's loss; None where it needs none."""
        reads_teacher = TEACHER in work.stage.reads
        return self.config_of(self._stage(TEACHER)) if reads_teacher else None

    def load_taught(self, work: Work):
        """The teacher's Policy; None where no term needs one."""
        return self.load_to_answer(TEACHER) if TEACHER in work.stage.reads else None

    def student(self, work: Work):
        """The StudentRun of a student."""
        name = self._short(work.stage)
        tasks, run = ({}, None) if self.run is None else (self.tasks, work.phase)
        return StudentRun(self.settings, name, work.settings, tasks, run)

    def batching(self):
        """How texts become batches, for the hash."""
        settings = self.settings
        return [settings.mixing_temperature, settings.packing, settings.readers]

    # Reinforced students

    def asked(self, work: Work):
        """The puzzles whose texts the other students learn; for rejection sampling the first ones."""
        if work.stage.kind == "accept":
            return self.puzzles.train[: work.settings.num_prompts]
        return {"reasoning": self.puzzles.train, "general": []}

    def questions(self, work: Work):
        """Those that fit, with their prompt_ids."""
        policy, limit = self._without_params(work.stage), work.settings.rollout.limit()
        with at("rollout"):
            return {"reasoning": policy.ask(self.puzzles.train, limit), "general": []}

    def rewards(self, work: Work):
        """A context with the rewards of the puzzles."""
        return scenario_rewards(work.settings, {})

    def check_rewards(self, work: Work):
        """Raise ValueError where the rewards cannot score the puzzles."""
        with self.rewards(work) as paid, at("rewards"):
            paid["reasoning"].check(self.puzzles.train)

    # Measuring

    def check_measured(self, work: Work):
        """Raise ValueError where answers leave no room for a prompt."""
        check_room(work.config, (), work.settings.max_completion_length)

    def measured_inputs(self, work: Work):
        """The questions."""
        questions = [task.questions for task in self.tasks.values()]
        rules = [[task.rule, digest_of(task.rule)] for task in self.tasks.values()]
        settings = self.about(work.settings) | {"rules": rules}
        return {"settings": settings, "questions": questions}

    def answering(self, work: Work):
        return Answering(work.settings, work.settings.num_questions, work.settings.samples)

    def measure(self, work: Work):
        """Each task's shares of right answers."""
        policy = self.load_to_answer(work.stage.start)
        found = answer_tasks(work.settings, self.tasks, policy, self.settings.seed)
        say_shares(self.title_of(work.stage.start), found.shares)
        if first_process():
            write_whole(work.folder / SAMPLES, json.dumps(found.samples, indent=1))
        return found.shares

    def scores_of(self, result):
        # The score of all tasks, where there are several, is the last
        return dict(reversed(intervals(result).items()))

    def title_of(self, name: str):
        """How tables and answers.json call the policy of a stage."""
        return name.replace(STARTS, "start ").rpartition("/")[2]

    def titles(self):
        return {name: self.title_of(name) for name in super().titles()}

    def row_of(self, measurement):
        return self.title_of(measurement.removeprefix(MEASURED))

    def page(self, page, measured):
        starts = {
            self.title_of(stage.name): self.title_of(stage.start)
            for stage in self.stages
            if stage.name.startswith((STUDENTS, REINFORCED))
        }
        compared = [(s, name) for name, s in starts.items() if {s, name} <= page.scores.keys()]
        samples = {
            self.row_of(name): read_json(self.run.folder / name / SAMPLES)
            for name in measured
            if (self.run.folder / name / SAMPLES).exists()
        }
        groups = [{"stage": title} | each for title, of in samples.items() for each in of]
        shown = dict.fromkeys([TEACHER, *(title for pair in compared for title in pair)])
        return dataclasses.replace(
            page,
            compared=compared or page.compared,
            pairs=first_answers({t: samples[t] for t in list(shown)[:BESIDE] if t in samples}),
            samples=groups,
        )


def _path(block: StartSettings | TeacherSettings):
    """The path of the checkpoint that a block names, or None."""
    return block.path if isinstance(block, TeacherSettings) else block.init_from


def _path_field(stage: Stage):
    """The field of a first stage's block that names its checkpoint."""
    return "path" if stage.name == TEACHER else "init_from"
