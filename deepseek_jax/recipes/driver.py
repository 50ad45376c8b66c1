"""The one driver: a recipe is a list of stages, which is checked, planned, run and resumed here.

A kind of stage is a file of recipes.kinds. A recipe adds a Job: its list, and what its stages share.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.costs.chips import GIB
from deepseek_jax.costs.program import Program, argument_bytes
from deepseek_jax.errors import at
from deepseek_jax.files import read_json, write_whole
from deepseek_jax.lazy import LazyTable
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.parallel.host_memory import device_bytes
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.start import check_slots
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.training.lineage import run_stage
from deepseek_jax.training.remembered import remembered
from deepseek_jax.training.run import Run, leave_if_asked

# The file of a measurement in its stage's folder
SCORES = "scores.json"
# Tokens of the longest prompt where only the data say: a config limits the prompts of reinforcement alone
PROMPT_LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of stage, as functions of a Work.

    check: raises ValueError, naming the field, where the settings do not fit the mesh or the model; for
    runs and plans. compiles: the stage's programs. run: the stage itself; what it does not return it
    leaves in the stage's folder. covers: the inputs of the stage's hash besides the stages that it
    depends on. check_data: raises ValueError where the data do not fit the settings, before any stage
    runs. is_left: whether the folder has what run leaves. is_policy: whether run returns a Policy, or
    None for one that stays where it is. is_measure: whether it returns what it measured, as JSON can hold
    it. builds_data: whether check_data writes a dataset in the work directory.
    """

    check: Callable[["Work"], None]
    compiles: Callable[["Work"], list[Program]]
    run: Callable[["Work"], Any]
    covers: Callable[["Work"], dict]
    check_data: Callable[["Work"], None] = lambda work: None
    is_left: Callable[[Path], bool] = lambda folder: is_orbax(folder / "params")
    is_policy: bool = True
    is_measure: bool = False
    builds_data: bool = False


# The kinds of stages: a run imports those that its list names
KINDS = LazyTable(
    {
        "pretrain": "deepseek_jax.recipes.kinds.pretrain:PRETRAIN",
        "given": "deepseek_jax.recipes.kinds.pretrain:GIVEN",
        "tune": "deepseek_jax.recipes.kinds.tune:TUNE",
        "reinforce": "deepseek_jax.recipes.kinds.reinforce:REINFORCE",
        "prefer": "deepseek_jax.recipes.kinds.prefer:PREFER",
        "judge": "deepseek_jax.recipes.kinds.judge:TRAIN_JUDGE",
        "accept": "deepseek_jax.recipes.kinds.accept:ACCEPT",
        "distil": "deepseek_jax.recipes.kinds.distil:DISTIL",
        "learn_from": "deepseek_jax.recipes.kinds.learn_from:LEARN_FROM",
        "measure": "deepseek_jax.recipes.kinds.measure:MEASURE",
        "ask": "deepseek_jax.recipes.kinds.ask:ASK",
        "sift": "deepseek_jax.recipes.kinds.ask:SIFT",
    }
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A line of a recipe's list.

    name: its folder, its phase in the metrics, and its block of the config, where `block` names no other.
    kind: a name of KINDS. start: the stage whose parameters it begins from. reads: the stages whose texts,
    reward models or parameters it uses. title: its name on the page.
    """

    name: str
    kind: str
    start: str = ""
    reads: tuple[str, ...] = ()
    title: str = ""
    block: str = ""

    @property
    def does(self) -> Kind:
        """What its kind does."""
        return KINDS[self.kind]


class Made(NamedTuple):
    """A stage that has ended. hash: of all its inputs. result: what a measurement found, else None."""

    name: str
    hash: str
    folder: Path
    result: Any = None


class Answering(NamedTuple):
    """What a plan knows of a measurement's answers: their options, the number of prompts, n samples of each.

    prompt_length: tokens of the longest prompt; None where only the data say. dtype: of the parameters.
    scored: whether reward models score the answers.
    """

    options: AnswerOptions
    prompts: int
    n: int = 1
    prompt_length: int | None = None
    dtype: str = "float32"
    scored: bool = False


class Job:
    """What the stages of a recipe share. Each recipe has one of its own, with what its kinds ask of it.

    settings: of the whole config. mesh: None where only data and scores are read. run: None in a plan, which
    reads no data, checkpoint or tokenizer. opened: closes what the job opens, such as rewards.
    """

    stages: tuple[Stage, ...]
    # Whether a changed config may resume in the same workdir
    redoes_what_changed = False

    def __init__(self, settings, mesh: Mesh | None, run: Run | None = None):
        self.settings, self.mesh, self.run = settings, mesh, run
        self.opened, self._found = contextlib.ExitStack(), {}

    def once(self, work: "Work", what: str, read: Callable):
        """The result of the first call of read() for this stage: `what` it reads."""
        key = work.name, what
        if key not in self._found:
            self._found[key] = read()
        return self._found[key]

    def begin(self):
        """Read what all stages share; of a plan, no more than the ModelConfigs. Raises ValueError as at
        "config".
        """

    def check_shared_data(self):
        """Read the data that all stages share, which may write datasets below the run's folder. Raises
        ValueError as at "config".
        """

    def works(self):
        """The stages of the list, in order: [Work]."""
        return [Work(stage, self) for stage in self.stages]

    def path_of(self, stage: Stage):
        """The dotted path of a stage's settings below the config; "" for the whole of it."""
        return stage.block or stage.name

    def model_path_of(self, stage: Stage):
        """The dotted path of the block that has the model of a stage."""
        return "model"

    def settings_of(self, stage: Stage):
        """A stage's settings, with its seed."""
        raise NotImplementedError

    def config_of(self, stage: Stage) -> ModelConfig:
        """The ModelConfig of the policy that a stage begins with."""
        raise NotImplementedError

    def seed_of(self, stage: Stage) -> int:
        """A stage's seed."""
        return self.settings.seed

    def prefix_of(self, stage: Stage):
        """What the names of a stage's programs begin with."""
        return f"{stage.name}: "

    def phase_of(self, stage: Stage) -> Run:
        """The Run of a stage's training, whose folder has its checkpoints."""
        return self.run.of(stage.name)

    def adapter_of(self, stage: Stage) -> AdapterSettings | None:
        """What a stage trains beside its policy; None for all of the policy."""

    def evaluate_of(self, work: "Work"):
        """What measures in a stage's training, see data.batches.PackedDocuments; None for nothing."""

    def load(self, name: str) -> Policy:
        """The policy that a stage left. Called again for each stage that trains it, which donates it."""
        raise NotImplementedError

    def check_measured(self, work: "Work"):
        """The check of a measuring stage of this recipe."""

    def check_measured_data(self, work: "Work"):
        """The check_data of a measuring stage of this recipe."""

    def answering(self, work: "Work") -> Answering | None:
        """What a measuring stage asks; None where it samples nothing."""

    def models(self, work: "Work") -> dict[str, ModelRewardSettings]:
        """NAME -> settings of the reward models and judges that are loaded for a stage."""
        return {}

    def sampling_mesh(self):
        """The mesh that answers are sampled on, where these models are too."""
        return self.mesh

    def measured_in(self, stage: Stage):
        """The file with what a measuring stage found, below the run's folder."""
        raise NotImplementedError

    def measurements(self):
        """{name: its file below the run's folder} of what the run measures, in order."""
        return {
            stage.name: self.measured_in(stage) for stage in self.stages if stage.does.is_measure
        }

    def scores_of(self, result) -> dict:
        """{score: [mean, low, high]} of what a measurement found, with 95% intervals, the headline first. low
        and high are None for a score without an interval. Default: the lists of three in a dict.
        """
        return {n: s for n, s in result.items() if isinstance(s, list) and len(s) == 3}

    def measure(self, work: "Work"):
        """The run of a measuring stage of this recipe."""
        raise NotImplementedError

    def policy_of(self, work: "Work", params) -> Policy:
        """The policy of the parameters that a stage of pre-training has trained."""
        raise NotImplementedError

    def is_complete(self):
        """Whether nothing is left to do but the report."""
        return False

    def keep(self, work: "Work"):
        """Run a stage whose result is not there yet, and keep the result."""
        raise NotImplementedError

    def finish(self):
        """Called after the last stage: save what the run leaves as a whole."""

    def describe_data(self):
        """Read the data as a run does: -> what there is, in words. For launch/train.py --check."""
        raise NotImplementedError

    def report(self):
        """Print the run's results."""


class LineageJob(Job):
    """A job whose stages have folders of their own, and run again where their inputs have changed.

    A stage's folder has stage.json, the hashes of its inputs (see training.lineage), and, where it trains a
    policy, params, which launch/convert.py reads. made: name -> Made.
    """

    redoes_what_changed = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made: dict[str, Made] = {}

    def about(self, block):
        """A block of settings for the hash, with what else the stage depends on."""
        raise NotImplementedError

    def read_with(self, work: "Work") -> dict:
        """What else the parameters of a first stage are read with: a part of its hash."""
        return {}

    def measured_in(self, stage: Stage):
        return f"{stage.name}/{SCORES}"

    def save(self, work: "Work", policy: Policy):
        """Save the policy that a stage's run returned."""
        save_orbax(work.folder / "params", policy.config, policy.params)

    def ended(self, work: "Work"):
        """Called after each stage, also where it was complete."""

    def phase_of(self, stage: Stage):
        # The loop wants a folder of checkpoints alone; the stage has stage.json and params beside them
        return self.run.of(stage.name, self.run.folder / stage.name / "checkpoints")

    def keep(self, work: "Work"):
        kind = work.stage.does

        def make(folder):
            # A run that was killed after the last save calls make again
            if kind.is_left(folder):
                return
            result = kind.run(work)
            if kind.is_measure and first_process():
                write_whole(folder / SCORES, json.dumps(result, indent=1))
            elif kind.is_policy and result is not None:
                self.save(work, result)

        own = run_stage(self.run.folder, work.name, self._inputs(work), make)
        scores = work.folder / SCORES
        # From the file: JSON turns tuples into lists, and a resumed run must get the same
        result = read_json(scores) if scores.exists() else None
        self.made[work.name] = Made(work.name, own, work.folder, result)
        self.ended(work)

    def _inputs(self, work: "Work"):
        """What a stage's hash is made of: input -> what lineage.content_hash takes."""
        stage, made = work.stage, self.made
        parent = {"parent": made[stage.start].hash} if stage.start else {}
        read = {name: made[name].hash for name in stage.reads}
        return stage.does.covers(work) | parent | read


class WorkdirJob(Job):
    """A job of few stages, whose results are in the work directory itself: a policy is handed on in memory,
    and a measurement is NAME.json. policies: stage -> Policy.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.policies: dict[str, Policy] = {}

    def path_of(self, stage: Stage):
        return ""

    def measured_in(self, stage: Stage):
        return f"{stage.name}.json"

    def prefix_of(self, stage: Stage):
        return "answers: " if stage.kind == "measure" else ""

    def load(self, name: str):
        return self.policies[name]

    def keep(self, work: "Work"):
        kind = work.stage.does
        if kind.is_measure:
            path = self.run.folder / self.measured_in(work.stage)
            remembered(path, lambda: kind.run(work))
        elif kind.is_policy:
            self.policies[work.name] = kind.run(work)
        else:
            kind.run(work)


@dataclasses.dataclass(frozen=True)
class Work:
    """A stage at work: what the functions of its kind get."""

    stage: Stage
    job: Job

    @property
    def name(self):
        """The stage's name."""
        return self.stage.name

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run."""
        return self.job.mesh

    @property
    def settings(self):
        """The stage's block of the config, with its seed."""
        return self.job.settings_of(self.stage)

    @property
    def seed(self) -> int:
        """The stage's seed."""
        return self.job.seed_of(self.stage)

    @property
    def config(self) -> ModelConfig:
        """The ModelConfig of the policy that the stage begins with."""
        return self.job.config_of(self.stage)

    @property
    def adapter(self) -> AdapterSettings | None:
        """What the stage trains beside its policy."""
        return self.job.adapter_of(self.stage)

    @property
    def prefix(self) -> str:
        """What the names of its programs begin with."""
        return self.job.prefix_of(self.stage)

    @property
    def phase(self) -> Run:
        """The Run of its training."""
        return self.job.phase_of(self.stage)

    @property
    def folder(self) -> Path:
        """Where the stage leaves what it does not return."""
        return self.job.run.folder / self.stage.name

    @property
    def made(self) -> dict[str, Made]:
        """The stages that have ended."""
        return self.job.made

    def start(self):
        """The policy that the stage begins from."""
        return self.job.load(self.stage.start)

    def at(self):
        """A context that puts the path of the stage's settings before an error's message."""
        path = self.job.path_of(self.stage)
        return at(f"config.{path}" if path else "config")


def check(job: Job):
    """Raise ValueError where a stage's settings do not fit the mesh or its model."""
    with at("config"):
        check_slots(job.settings, job.sampling_mesh())
        job.begin()
    for work in job.works():
        with work.at():
            work.stage.does.check(work)


def plan(job: Job) -> list[Program]:
    """The programs of all stages in their order, those that measure last, and once, though many stages do."""
    check(job)
    planned = {}
    for work in sorted(job.works(), key=lambda work: work.stage.does.is_measure):
        with work.at():
            programs = work.stage.does.compiles(work)
        for program in programs:
            own = dataclasses.replace(
                program,
                settings=work.settings,
                path=job.path_of(work.stage),
                model_path=job.model_path_of(work.stage),
            )
            planned.setdefault(program.name, own)
    return list(planned.values())


def _when_checked(work: Work):
    """Data that are learned before those that are measured, and last what writes a dataset."""
    return work.stage.does.builds_data, work.stage.does.is_measure


def describe(job: Job):
    """Open what a run opens before its first stage: -> what its data are, in words. Raises ValueError as
    check_whole does.
    """
    with job.opened:
        check_whole(job)
        with at("config"):
            return job.describe_data()


def held_out_scores(job: Job):
    """{measurement: {score: [mean, low, high]}} of what a run has measured so far, in order.

    The last measurement of a complete run is of what it leaves.
    """
    files = {name: job.run.folder / file for name, file in job.measurements().items()}
    return {name: job.scores_of(read_json(file)) for name, file in files.items() if file.exists()}


def check_memory(job: Job):
    """Raise ValueError, naming the fields, where what a program is called with exceeds a device's memory.

    It is a part of what the program needs, and known without an array: the plan's own shapes.
    """
    room = device_bytes()
    try:
        programs = plan(type(job)(job.settings, job.mesh)) if room else []
    # The run's own check follows, and says in its words what is wrong
    except ValueError:
        return
    for program in programs:
        # What an earlier program returns is in that one's arguments, or is smaller
        state, *batch = program.arguments if not program.needs else ((),)
        parts = argument_bytes(state), argument_bytes(batch), program.beside_bytes
        if sum(parts) > room:
            held, rows, others = (f"{part / GIB:,.2f} GiB" for part in parts)
            path = ".".join(filter(None, ("config", program.path)))
            raise ValueError(
                f"{path}: {program.name!r} does not fit in a device's {room / GIB:,.2f} GiB: parameters and "
                f"optimizer state take {held}, the batch {rows}, and what waits meanwhile {others}; lower "
                f"the sizes of config.{program.model_path}, the rows and lengths of a batch, such as "
                "batch_size, or split them over more devices by config.mesh"
            )


def check_whole(job: Job):
    """Raise ValueError for all that can be known to be wrong before the first stage runs: of the memory, the
    settings, the checkpoints, the rewards and the data, which it opens. Within job.opened.
    """
    check_memory(job)
    check(job)
    for work in sorted(job.works(), key=_when_checked):
        leave_if_asked("the start")
        with work.at():
            work.stage.does.check_data(work)
    with at("config"):
        job.check_shared_data()


def run(job: Job):
    """Check all stages before the first one runs; run those that are left, in order; report."""
    if not job.is_complete():
        with job.opened:
            # A mistake must be named before anything is written
            check_whole(job)
            for work in job.works():
                leave_if_asked(f"stage {work.name}")
                job.keep(work)
        job.run.writer.close()
        job.finish()
    job.report()
