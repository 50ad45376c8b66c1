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
from deepseek_jax.files import read_json, write_whole
from deepseek_jax.named_code import code_digests
from deepseek_jax.parallel.mesh import group_mesh, mesh_of
from deepseek_jax.parallel.processes import barrier, first_process, say
from deepseek_jax.recipes.conversing import (
    conversing,
    open_environments,
    rewards_of,
    try_environment,
)
from deepseek_jax.recipes.generate.settings import GenerateSettings
from deepseek_jax.recipes.kinds.measure import scored_answer_programs
from deepseek_jax.recipes.kinds.paying import Paid
from deepseek_jax.recipes.kinds.pretrain import BaseCorpus, Given, Pretrain
from deepseek_jax.recipes.origin import Origin, digest
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.stage import Answering, Context, Left, Source, Stage
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reinforce.scenarios import deciding, say_deciding
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.tables import fates_table
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.synthesis.augment import augmented
from deepseek_jax.synthesis.generated import dataset_folder
from deepseek_jax.synthesis.ngrams import Evaluation
from deepseek_jax.synthesis.sift import FATES, write_sifted
from deepseek_jax.synthesis.teacher import Teacher, check_opening, read_rows
from deepseek_jax.worlds.registry import find_questions, open_rewards

SETTINGS = GenerateSettings
QUESTIONS = "questions.json"
ON_PAGE = 64  # prompts whose samples the page has


def stages(s: GenerateSettings) -> list[Stage]:
    """A teacher, a base or a checkpoint; the questions that it is asked, also varied ones; its samples; and
    the dataset of what the filters keep. With other filters, the same samples are sifted again.
    """
    questions, rewards = AskedQuestions(s), SampleRewards(s)
    measured_on, teacher = MeasuredOn(s, questions), _teacher(s, rewards)
    asked = {"data": s.data, "sampling": s.sampling, "chunk_size": s.chunk_size}
    return [
        teacher,
        Vary(
            "questions",
            asked | {"augment": s.augment},
            s,
            questions,
            measured_on,
            seed=s.seed,
            start=teacher.name,
            path="",
        ),
        Ask(
            "samples",
            asked,
            s,
            questions,
            Left("questions"),
            rewards,
            seed=s.seed,
            start=teacher.name,
            path="",
        ),
        Sift("dataset", {"keep": s.keep}, s, rewards, measured_on, Left("samples"), path=""),
    ]


def _teacher(s: GenerateSettings, rewards: "SampleRewards") -> Stage:
    tokenizer = None if s.base is None else s.base.corpus
    origin = Origin(s.model, s.data.template, s.init_from, tokenizer, trained=False)
    if s.base is None:
        return Given("init_from", None, origin=origin, path="", title="teacher")
    return Pretrain(
        "base",
        s.base,
        BaseCorpus(s.base, s.seed),
        waiting=(rewards,),
        seed=s.seed,
        origin=origin,
        path="base",
        label="pretrain",
        title="teacher",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class AskedQuestions(Source):
    """The questions of config.data, and the held-out ones of its task."""

    settings: GenerateSettings

    @functools.cached_property
    def both(self) -> tuple[list[dict], list[dict]]:
        """(questions to ask, held-out questions)."""
        with at("config"):
            return _questions(self.settings)

    def covers(self, context):
        adapter = self.settings.adapter
        return [self.both[0], None if adapter is None else digest(adapter)]

    def describe(self, context):
        found, _ = self.both
        return f"{len(found)} questions, such as {found[0]['question']!r}"


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredOn(Source):
    """The evaluation sets that config.keep.decontaminate names."""

    settings: GenerateSettings
    questions: AskedQuestions

    @functools.cached_property
    def texts(self) -> tuple[list[str], list[str]]:
        """(questions, solutions)."""
        with at("config"):
            return _measured_on(self.settings, self.questions.both[1])

    def covers(self, context):
        return [self.texts, self.settings.keep.ngram]

    def describe(self, context):
        return f"{len(self.texts[0])} questions of evaluations that they must not contain"

    def check(self, context):
        # Raises where a set is not there
        self.evaluation()

    def evaluation(self) -> Evaluation | None:
        """The synthesis.ngrams.Evaluation of these sets, or None."""
        return Evaluation(*self.texts, self.settings.keep.ngram) if any(self.texts) else None


@dataclasses.dataclass(frozen=True, eq=False)
class SampleRewards(Paid):
    """The rewards that score the samples, with reward models, open for the whole run."""

    settings: GenerateSettings

    def models(self, folder=None):
        return self.settings.reward_models

    def covers(self, context):
        settings = self.settings
        paths = {name: digest(block.path) for name, block in settings.reward_models.items()}
        talk = [*settings.tools, settings.environment, settings.conversation]
        return [settings.rewards, settings.reward_models, paths, code_digests(settings), talk]

    def environments(self, context: Context):
        """The Environments of the samples; None for single turns."""
        return context.once(
            "environments", lambda: open_environments(self.settings, context.opened)
        )

    def read(self, context: Context) -> Rewards:
        """The Rewards, on the devices of the teacher."""
        return context.once(self, lambda: self._open(context))

    def _open(self, context):
        settings = self.settings
        with at("config"), at("reward_models"):
            buffer = settings.model.get("expert_buffer")
            models = load_model_rewards(settings.reward_models, own_mesh(settings, context), buffer)
        models |= rewards_of(self.environments(context))
        with at("config"), at("rewards"):
            return context.opened.enter_context(open_rewards(settings.rewards, models=models))


@dataclasses.dataclass(frozen=True, eq=False)
class Asks(Stage):
    """A stage in which the teacher answers. With several processes, each group of config.teacher_processes
    answers its own share of the prompts, on a mesh of its own devices.
    """

    leaves_policy = False

    whole: GenerateSettings

    def sampling_mesh(self, mesh):
        return teacher_mesh(self.whole, mesh)

    def teacher(self, context: Context) -> Teacher:
        """The Teacher, whose policy is loaded when there is something to answer."""

        def load():
            return load_teacher(self.whole, context, self.start)

        def make():
            own = own_mesh(self.whole, context)
            return Teacher(self.whole, load, own, context.run.should_stop)

        return context.once("teacher", make)

    def answer(self, context, folder: Path, examples, *, n: int, conversing_in=None, rewards=None):
        """Let the teacher answer examples n times, into chunks in a folder. conversing_in: Environments of
        the answers, None for single turns.
        """
        teacher = self.teacher(context)
        if conversing_in is not None:
            own = conversing(teacher.policy, conversing_in, self.whole)
            answering = dataclasses.replace(teacher, load=lambda: own)
        else:
            answering = teacher
        # launch has set the mesh of all processes; a teacher is on the devices of its own group
        with jax.set_mesh(own_mesh(self.whole, context)), at("config"):
            # Reads the checkpoint: a complete stage does not need it
            prompts = prompts_of(self.whole, answering.policy, examples)
            answering.answer(folder, prompts, n=n, rewards=rewards)


@dataclasses.dataclass(frozen=True, eq=False)
class Vary(Asks):
    """The questions to ask: the given ones, and those derived from them by rule and by the teacher."""

    questions: AskedQuestions
    measured_on: MeasuredOn

    def is_left(self, folder):
        return (folder / QUESTIONS).exists()

    def run(self, context):
        def ask(name, examples):
            self.answer(context, context.own / name, examples, n=1)
            return context.own / name

        with at("config"):
            found, fates = augmented(
                self.whole, self.questions.both[0], self.measured_on.evaluation(), ask
            )
        if first_process():
            content = {"questions": found, "fates": fates}
            write_whole(context.own / QUESTIONS, json.dumps(content, ensure_ascii=False))
        barrier("the questions are there")


@dataclasses.dataclass(frozen=True, eq=False)
class Ask(Asks):
    """A teacher's answers to every question, with their rewards (arXiv:2501.12948, appendix B.3.3)."""

    questions: AskedQuestions
    varied: Left
    rewards: SampleRewards

    def is_left(self, folder):
        # The teacher skips chunks that are there
        return False

    def check_data(self, context):
        settings = self.whole
        with at("config"):
            self._check_groups()
        super().check_data(context)
        # Wrong rewards, questions and checkpoints raise before anything is trained
        rewards, (questions, _) = self.rewards.read(context), self.questions.both
        with at("rewards"):
            rewards.check(questions)
        say_deciding(settings, rewards)
        environments = self.rewards.environments(context)
        try_environment(environments, questions)
        policy = dataclasses.replace(context.policy, opening=settings.data.opening)
        prompts_of(settings, conversing(policy, environments, settings), questions)

    def _check_groups(self):
        """Raise ValueError for conversations that several groups of processes would hold."""
        own, all_of_them = self.whole.teacher_processes, jax.process_count()
        if self.whole.converses and own < all_of_them:
            # After a turn all processes tell each other what came of their tools
            raise ValueError(
                f"teacher_processes={own} of {all_of_them} processes makes several teachers, and all of them "
                f"hold conversations together; set it to {all_of_them}, or leave out tools and environment"
            )

    def programs(self, config, mesh, others):
        """The answers of one teacher, on the devices of its processes, and what reward models and judges make
        of them there.
        """
        settings, sampling = self.whole, self.whole.sampling
        asked = Answering(
            sampling,
            settings.chunk_size,
            sampling.samples_per_prompt,
            sampling.max_prompt_length,
            # A base is pre-trained in float32; a checkpoint is read in the dtype that it computes in
            dtype="float32" if settings.init_from is None else config.dtype,
            turns=settings.most_turns(),
        )
        own = teacher_mesh(settings, mesh)
        return scored_answer_programs(self, config, own, asked, self.rewards, scores=True)

    def run(self, context):
        """Leaves the chunks in the stage's folder."""
        self.answer(
            context,
            context.own,
            read_json(self.varied.read(context) / QUESTIONS)["questions"],
            n=self.whole.sampling.samples_per_prompt,
            conversing_in=self.rewards.environments(context),
            rewards=self.rewards.read(context),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Sift(Stage):
    """The dataset of the answers that the filters keep."""

    leaves_policy = False

    whole: GenerateSettings
    rewards: SampleRewards
    measured_on: MeasuredOn
    samples: Left

    def is_left(self, folder):
        return False

    def run(self, context):
        """Leaves the dataset in the stage's folder."""
        with at("config"):
            accuracy = deciding(self.whole, self.rewards.read(context))
            settings = dataclasses.replace(self.whole, accuracy=accuracy)
            write_sifted(
                settings,
                self.samples.read(context),
                self.measured_on.evaluation(),
                context.own,
            )

    def measurements(self):
        return {self.name: f"{self.name}/{FATES}"}

    def scores(self, found):
        # No interval: it would need the fates by question, because completions of one are alike
        fates = found.values()
        kept, asked = sum(of["kept"] for of in fates), sum(sum(of.values()) for of in fates)
        return {"kept_share": [kept / asked, None, None]}


def own_mesh(settings: GenerateSettings, context: Context) -> Mesh:
    """The mesh of a teacher: of the devices of its own group of processes."""
    with at("config"), at("teacher_processes"):
        return group_mesh(context.mesh, settings.teacher_processes)


def load_teacher(settings: GenerateSettings, context: Context, name: str) -> Policy:
    """The teacher's Policy, on the mesh of its group."""
    own = own_mesh(settings, context)
    policy = context.load(name, trained=False, mesh=own)
    with at("adapter"):
        policy = policy.with_adapter_of(settings.adapter, own)
    return dataclasses.replace(policy, opening=settings.data.opening)


def page(results: Results) -> Page:
    """The page, with the samples of the first prompts."""
    rows = itertools.islice(read_rows(results.folder / "samples"), ON_PAGE)
    shown = run_page(results, "Generation")
    return dataclasses.replace(shown, samples=[_group(row) for row in rows])


def report(results: Results):
    """Print how many questions and completions each filter removed, and write report.json."""
    folder = results.folder
    if first_process():
        _report(folder, read_json(folder / "questions" / QUESTIONS)["fates"])
    say(
        f"complete; report.html is in {folder}; set config.data.path of recipe 'sft' to "
        f"{dataset_folder(folder / 'dataset')}"
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
    completions = read_json(workdir / "dataset" / FATES)
    report = {"questions": fates, "completions": completions}
    (workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console = make_console()
    for what, counts in report.items():
        console.print(fates_table(f"what became of the {what}", counts))
