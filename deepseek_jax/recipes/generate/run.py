"""Generate a distillation data set with a teacher (arXiv:2501.12948, section 2.4 and appendix B.3.3).

questions -> add variants, by rule and by the teacher -> sample and score n answers to each -> write the good
ones as a dataset for recipes.sft -> report what each filter removed.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
from jax.sharding import Mesh

from deepseek_jax.data.questions import distinct, evaluation_texts, read_questions
from deepseek_jax.errors import at
from deepseek_jax.files import read_json
from deepseek_jax.parallel.mesh import group_mesh, mesh_of
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.conversing import (
    conversing,
    open_environments,
    rewards_of,
    try_environment,
)
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.job import LineageJob, Work
from deepseek_jax.recipes.kinds.ask import ASK, SIFT, sampling_inputs
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.short import FromPolicy
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.recipes.start import starting_policy
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import deciding, say_deciding
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import fates_table
from deepseek_jax.rollout.policy import Policy, load_policy
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.generated import dataset_folder
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.sift import FATES
from deepseek_jax.synthesis.teacher import Teacher, check_opening, read_rows
from deepseek_jax.training.lineage import run_stage
from deepseek_jax.worlds.registry import find_questions, open_rewards

SETTINGS = GenerateSettings
# The stages; with a checkpoint the first is not trained
BASE, SAMPLES, DATASET = "base", "samples", "dataset"
PHASE = "pretrain"  # of the base
ON_PAGE = 64  # prompts whose samples the page has


class GenerateJob(FromPolicy, LineageJob):
    """The questions and the teacher. With several processes, each group of config.teacher_processes answers
    its own share of the prompts, on a mesh of its own devices.
    """

    settings: GenerateSettings
    page_title = "Generation"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        start = self.first(BASE)
        self.stages = (
            start,
            Stage(SAMPLES, ASK, start.name),
            Stage(DATASET, SIFT, "", (SAMPLES,)),
        )

    @functools.cached_property
    def own(self):
        """The mesh of a teacher: of the devices of its own group of processes."""
        if self.run is None:
            return teacher_mesh(self.settings, self.mesh)
        with at("teacher_processes"):
            return group_mesh(self.mesh, self.settings.teacher_processes)

    @functools.cached_property
    def read(self):
        """(questions to ask, held-out questions of config.data.task)."""
        return _questions(self.settings)

    @functools.cached_property
    def measured_on(self):
        """(questions, solutions) of the evaluation sets that config.keep.decontaminate names."""
        return _measured_on(self.settings, self.read[1])

    @functools.cached_property
    def evaluation(self):
        """The synthesis.ngrams.Evaluation of these sets, or None."""
        if not any(self.measured_on):
            return None
        return Evaluation(*self.measured_on, self.settings.keep.ngram)

    @functools.cached_property
    def rewards(self):
        """The Rewards that score the samples, with the trained reward models."""
        settings = self.settings
        with at("reward_models"):
            models = load_model_rewards(
                settings.reward_models, self.own, settings.model.get("expert_buffer")
            )
        models |= rewards_of(self.environments)
        with at("rewards"):
            return self.opened.enter_context(open_rewards(settings.rewards, models=models))

    @functools.cached_property
    def accuracy(self):
        """The reward that decides whether an answer is right."""
        return deciding(self.settings, self.rewards)

    @functools.cached_property
    def environments(self):
        """The Environments of the samples; None for single turns."""
        return open_environments(self.settings, self.opened)

    @functools.cached_property
    def teacher(self):
        """The synthesis.teacher.Teacher, whose policy is loaded when there is something to answer."""
        return Teacher(self.settings, self._load, self.own, self.run.should_stop)

    @functools.cached_property
    def sampled(self):
        """The Teacher of the samples: the same policy, with tools and environment."""
        return dataclasses.replace(self.teacher, load=lambda: self._conversing(self.teacher.policy))

    def _conversing(self, policy):
        return conversing(policy, self.environments, self.settings)

    @functools.cached_property
    def augmented(self):
        """(the examples that are asked, the fate of each question)."""
        with at("config"):
            return augmented(self.settings, self.read[0], self.evaluation, self._ask)

    def begin(self):
        if self.run is None:
            return self.planned
        self._check_groups()
        # Wrong rewards, questions and checkpoints raise before anything is trained
        rewards, (questions, _) = self.rewards, self.read
        with at("rewards"):
            rewards.check(questions)
        say_deciding(self.settings, rewards)
        try_environment(self.environments, questions)
        if self.settings.init_from is None:
            prompts_of(self.settings, self._conversing(self.policy), questions)
        return self.planned, self.evaluation

    def _check_groups(self):
        """Raise ValueError for conversations that several groups of processes would hold."""
        own, all_of_them = self.settings.teacher_processes, jax.process_count()
        if self.settings.converses and own < all_of_them:
            # After a turn all processes tell each other what came of their tools
            raise ValueError(
                f"teacher_processes={own} of {all_of_them} processes makes several teachers, and all of them "
                f"hold conversations together; set it to {all_of_them}, or leave out tools and environment"
            )

    @functools.cached_property
    def policy(self):
        """The Policy of a base, without params."""
        policy = starting_policy(self.settings, self.mesh, self.settings.data.template)
        return dataclasses.replace(policy, opening=self.settings.data.opening)

    def phase_of(self, stage: Stage):
        return self.run.of(PHASE, self.run.folder / stage.name / PHASE)

    def sampling_mesh(self):
        return self.own

    def checkpoint_of(self, work: Work):
        """(path, block of the model) of the teacher's checkpoint."""
        return self.settings.init_from, self.settings.model

    def given(self, work: Work):
        """Stays where it is."""

    def _ask(self, name: str, examples: list):
        """Let the teacher answer each example once: -> the folder of its chunks."""
        start = self.stages[0].name
        inputs = sampling_inputs(self.settings, examples, n=1, scored=False)
        inputs |= {"parent": self.made[start].hash}

        def make(folder):
            self.answer(folder, examples, n=1)

        run_stage(self.run.folder, name, inputs, make)
        return self.run.folder / name

    def answer(self, folder: Path, examples: list, n: int, rewards=None):
        """Let the teacher answer examples n times, into chunks in a folder. rewards: of the samples, which
        may be conversations.
        """
        teacher = self.teacher if rewards is None else self.sampled
        # launch has set the mesh of all processes; a teacher is on the devices of its own group
        with jax.set_mesh(self.own), at("config"):
            # Reads the checkpoint: a complete stage does not need it
            prompts = prompts_of(self.settings, teacher.policy, examples)
            teacher.answer(folder, prompts, n=n, rewards=rewards)

    def _load(self):
        """The teacher's Policy."""
        settings = self.settings
        path, model = settings.init_from, settings.model
        if path is None:
            path, model = self.run.folder / BASE / "params", {}
        policy = load_policy(path, model, self.own, template=settings.data.template)
        with at("adapter"):
            policy = policy.with_adapter_of(settings.adapter, self.own)
        return dataclasses.replace(policy, opening=settings.data.opening)

    def measurements(self):
        return {DATASET: f"{DATASET}/{FATES}"}

    def scores_of(self, result):
        # No interval: it would need the fates by question, because completions of one are alike
        fates = result.values()
        kept, asked = sum(of["kept"] for of in fates), sum(sum(of.values()) for of in fates)
        return {"kept_share": [kept / asked, None, None]}

    def page(self, page, measured):
        rows = itertools.islice(read_rows(self.run.folder / SAMPLES), ON_PAGE)
        return dataclasses.replace(page, samples=[_group(row) for row in rows])

    def describe_data(self):
        questions, evaluations = self.read[0], self.measured_on[0]
        counts = f"{len(questions)} questions, and {len(evaluations)} of evaluations"
        return f"{counts} that they must not contain, such as {questions[0]['question']!r}"

    def report(self):
        """Print how many questions and completions each filter removed, and write report.json. Process 0
        alone.
        """
        if first_process():
            _report(self.run.folder, self.augmented[1])
        write_page(self)
        say(
            f"complete; report.html is in {self.run.folder}; set config.data.path of recipe 'sft' to "
            f"{dataset_folder(self.run.folder / DATASET)}"
        )


def prompts_of(settings: GenerateSettings, policy: Policy, examples: list):
    """The examples with their prompt_ids, without prompts above sampling.max_prompt_length."""
    sampling = settings.sampling
    limit = Limit(sampling.max_completion_length, sampling.max_prompt_length)
    with at("sampling"):
        prompts = policy.ask(examples, limit, "generation")
    with at("data"):
        # One prompt is enough: the template ends all of them alike
        check_opening(policy, prompts[0]["prompt_ids"])
    return prompts


def teacher_mesh(settings: GenerateSettings, mesh: Mesh):
    """The mesh of the first teacher: parallel.mesh.group_mesh for devices that are not there."""
    if mesh.devices.flat[0].platform == "cpu":
        return mesh
    devices = [
        device
        for device in sorted(mesh.devices.flat, key=lambda device: device.id)
        if device.process_index < settings.teacher_processes
    ]
    return mesh_of(mesh, devices)


def _questions(settings: GenerateSettings):
    """(questions to ask, held-out questions of config.data.task)."""
    data, held_out = settings.data, []
    with at("data"):
        if data.path is not None:
            questions = read_questions(data.path, data.split, data.columns)
        else:
            _, asked = find_questions(data.task)
            plays = settings.environment is not None
            task = asked.task(settings.seed, data.num_held_out, plays)
            questions, held_out = distinct(task.train), task.held_out
    if data.num_prompts is not None and data.num_prompts > len(questions):
        raise ValueError(
            f"data.num_prompts={data.num_prompts} is above the {len(questions)} different questions; lower it"
        )
    return questions[: data.num_prompts], held_out


def _measured_on(settings: GenerateSettings, held_out: list):
    """(questions, solutions) of the evaluation sets that config.keep.decontaminate names."""
    questions, solutions = [], []
    for name in settings.keep.decontaminate:
        if name == "held_out":
            asked = [example["question"] for example in held_out]
            worked = [example.get("solution", example["answer"]) for example in held_out]
        else:
            with at("keep.decontaminate", "path"):
                asked, worked = evaluation_texts(name)
        questions, solutions = questions + asked, solutions + worked
    return questions, solutions


def _group(row: dict):
    """A line of the samples as reports.page.Page.samples has it."""
    names = {"text": "text", "reward": "total", "parts": "parts", "tokens": "length"}
    names["messages"] = "messages"
    completions = [
        {names[name]: value for name, value in sample.items() if name in names}
        | {"truncated": not sample["finished"]}
        for sample in row["samples"]
    ]
    example = row["example"]
    about = {"kind": example.get("origin"), "answer": example.get("answer")}
    return about | {"prompt": example["question"], "completions": completions}


def _report(workdir: Path, fates: dict):
    completions = read_json(workdir / DATASET / FATES)
    report = {"questions": fates, "completions": completions}
    (workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console = make_console()
    for what, counts in report.items():
        console.print(fates_table(f"what became of the {what}", counts))


JOB = GenerateJob
