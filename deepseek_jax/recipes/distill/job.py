"""What the stages of a distillation share: the tasks' texts, and what is asked and measured."""

import dataclasses
import functools
import json

from deepseek_jax.data.messages import worked_conversations
from deepseek_jax.errors import at
from deepseek_jax.files import read_json, write_whole
from deepseek_jax.named_code import code_digests, digest_of
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.distill.policies import STARTS, TEACHER, TEACHER_BASE, DistillPolicies
from deepseek_jax.recipes.distill.scores import answer_tasks, first_answers, intervals, say_shares
from deepseek_jax.recipes.distill.student import StudentRun
from deepseek_jax.recipes.distill.tasks import (
    file_tasks,
    texts_hash,
    transfer_tasks,
    world_tasks,
)
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.accept import ACCEPT, accepted_by
from deepseek_jax.recipes.kinds.pretrain import PRETRAIN
from deepseek_jax.recipes.kinds.tune import TUNE, check_conversations, held_out_loss, rows_of
from deepseek_jax.recipes.stage import Answering, Stage
from deepseek_jax.recipes.start import base_corpus
from deepseek_jax.reinforce.scenarios import say_deciding, scenario_rewards
from deepseek_jax.rollout.policy import check_room
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.worlds.registry import find_world

MEASURED, STUDENTS, REINFORCED, TEXT = "measured/", "students/", "reinforced/", "text"
SAMPLES = "samples.json"  # answers in the folder of a measurement, for the page
BESIDE = 4  # policies whose answers the page has side by side
FEWEST = 2  # held-out questions of the world where config.evaluation is None


class DistillJob(DistillPolicies):
    """The texts, what each stage asks for, and what is measured."""

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

    def check_shared_data(self):
        # Wrong files raise before the teacher is trained
        return self.of_files

    # The stages

    def path_of(self, stage: Stage):
        name = stage.name
        if name.startswith(MEASURED):
            return "evaluation"
        if stage.kind is PRETRAIN:
            return f"{self.path_of_block(stage)}.base"
        return "teacher.fine_tune" if stage.kind is TUNE else name.replace("/", ".", 1)

    def model_path_of(self, stage: Stage):
        return f"{self.path_of_block(self.root_of(stage))}.model"

    def settings_of(self, stage: Stage):
        settings, (group, _, name) = self.settings, stage.name.partition("/")
        if stage.name.startswith(MEASURED):
            return settings.evaluation
        if stage.kind is PRETRAIN:
            return self.block_of(stage).base
        if stage.kind is TUNE:
            return dataclasses.replace(settings.teacher.fine_tune, seed=settings.seed)
        if group in ("students", "reinforced"):
            return dataclasses.replace(getattr(settings, group)[name], seed=settings.seed)
        return settings.text if stage.kind is ACCEPT else self.block_of(stage)

    def prefix_of(self, stage: Stage):
        if stage.kind.is_measure:
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
        if stage.kind is PRETRAIN:
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
        if work.stage.kind is ACCEPT:
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
        with self.rewards(work) as paid:
            with at("rewards"):
                paid["reasoning"].check(self.puzzles.train)
            say_deciding(work.settings, paid["reasoning"])

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

    def count_measured(self, work: Work):
        return sum(len(task.questions) for task in self.tasks.values())

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
