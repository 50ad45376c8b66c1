"""What the stages of a recipe share, and a stage at work. Each recipe adds a Job of its own."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from deepseek_jax import reports
from deepseek_jax.checkpoint import save_orbax
from deepseek_jax.errors import at
from deepseek_jax.files import read_json, write_whole
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.stage import Answering, Made, Stage
from deepseek_jax.reinforce.settings import ModelRewardSettings
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.lineage import run_stage
from deepseek_jax.training.remembered import remembered
from deepseek_jax.training.run import Run

# The file of a measurement in its stage's folder
SCORES = "scores.json"
# Tokens of the longest prompt where only the data say: a config limits the prompts of reinforcement alone
PROMPT_LENGTH = 1024


class Job:
    """What the stages of a recipe share. Each recipe has one of its own, with what its kinds ask of it.

    settings: of the whole config. mesh: None where only data and scores are read. run: None in a plan, which
    reads no data, checkpoint or tokenizer. opened: closes what the job opens, such as rewards.
    """

    stages: tuple[Stage, ...]
    # What report.html calls a run of the recipe
    page_title: str
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

    def count_measured(self, work: "Work") -> int | None:
        """The number of questions that a measuring stage asks; None where it samples nothing."""

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
            stage.name: self.measured_in(stage) for stage in self.stages if stage.kind.is_measure
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

    # The page

    def titles(self) -> dict[str, str]:
        """{stage: its name on the page} of those that have a record of their lineage."""
        return {}

    def row_of(self, measurement: str):
        """The name of a measurement's scores on the page."""
        return measurement.replace("_", " ")

    def page(self, page: "reports.Page", measured: dict) -> "reports.Page":
        """The page with what the recipe shows beside scores and curves. measured: {measurement: what it
        found} of those that are there.
        """
        return page


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

    def titles(self):
        stages = (stage for stage in self.stages if not stage.kind.is_measure)
        return {stage.name: stage.title or stage.name for stage in stages}

    def save(self, work: "Work", policy: Policy):
        """Save the policy that a stage's run returned."""
        save_orbax(work.folder / "params", policy.config, policy.params, policy.files())

    def ended(self, work: "Work"):
        """Called after each stage, also where it was complete."""

    def phase_of(self, stage: Stage):
        # The loop wants a folder of checkpoints alone; the stage has stage.json and params beside them
        return self.run.of(stage.name, self.run.folder / stage.name / "checkpoints")

    def keep(self, work: "Work"):
        kind = work.stage.kind

        def make(folder):
            # A run that was killed after the last save calls make again
            if kind.is_left(folder):
                return
            result = kind.run(work)
            if kind.is_measure and first_process():
                write_whole(folder / SCORES, json.dumps(result, indent=1))
            elif kind.is_policy and result is not None:
                with waiting_for(f"saving the parameters of {work.name}"):
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
        return stage.kind.covers(work) | parent | read


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
        return "answers: " if stage.kind.is_measure else ""

    def load(self, name: str):
        return self.policies[name]

    def keep(self, work: "Work"):
        kind = work.stage.kind
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
