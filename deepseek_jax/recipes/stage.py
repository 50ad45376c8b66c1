"""A line of a recipe's list, what it reads, and what it gets while it runs."""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_adapter, is_orbax, load_orbax
from deepseek_jax.costs.program import Program
from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.recipes.origin import Origin, frozen
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.training.run import Run
from deepseek_jax.training.settings import FitSettings

# The file of a measurement in its stage's folder
SCORES = "scores.json"


class Source:
    """What a stage reads, as a value. `read(context)` of each kind returns what it reads, in a run only.

    reads: the stages that it depends on.
    """

    reads: tuple[str, ...] = ()

    def covers(self, context: "Context") -> Any:
        """What it depends on besides the stages that it reads, for the hash: data, digests of code."""

    def check(self, context: "Context") -> None:
        """Raise ValueError, before any stage runs, for data that are not there or do not fit."""

    def describe(self, context: "Context") -> str:
        """What there is, in words; "" where another source says it."""
        return ""


@dataclasses.dataclass(frozen=True, eq=False)
class Left(Source):
    """What an earlier stage has left in its folder."""

    stage: str

    @property
    def reads(self):
        return (self.stage,)

    def read(self, context: "Context") -> Path:
        """The folder."""
        return context.folder / self.stage


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A line of a recipe's list. A kind of stage is a class; its fields are what it needs.

    name: its folder, its phase in the metrics and, where `path` names no other, its block of the config.
    settings: that block. seed: of all that it draws. start: the stage whose policy it begins from. origin:
    of the first stage of a line, which has no start. adapter: what it trains beside its policy; None for all
    of the policy. label: what its programs' names begin with; None for "NAME: ". title: its name on the page.
    """

    name: str
    settings: Any
    _: dataclasses.KW_ONLY
    seed: int = 0
    start: str = ""
    origin: Origin | None = None
    adapter: AdapterSettings | None = None
    path: str | None = None
    label: str | None = None
    title: str = ""

    # Whether it leaves a policy, and whether it measures one
    leaves_policy: ClassVar[bool] = True
    measures: ClassVar[bool] = False

    def __post_init__(self):
        # What trains draws by its settings
        if isinstance(self.settings, FitSettings):
            seeded = dataclasses.replace(self.settings, seed=self.seed)
            object.__setattr__(self, "settings", seeded)

    @property
    def sources(self) -> list[Source]:
        """The fields that say what it reads."""
        return [value for value in vars(self).values() if isinstance(value, Source)]

    @property
    def reads(self) -> list[str]:
        """The stages that it depends on besides its start."""
        return list(dict.fromkeys(name for source in self.sources for name in source.reads))

    @property
    def config_path(self) -> str:
        """The dotted path of its settings, with config."""
        path = self.name if self.path is None else self.path
        return f"config.{path}" if path else "config"

    @property
    def prefix(self) -> str:
        """What the names of its programs begin with."""
        return f"{self.name}: " if self.label is None else self.label

    def at(self):
        """A context that puts the path of the settings before an error's message."""
        return at(self.config_path)

    def model(self, config: ModelConfig) -> ModelConfig:
        """The ModelConfig with which it works. config: of the policy that it begins from."""
        return config

    def leaves(self, config: ModelConfig) -> ModelConfig:
        """The ModelConfig of the policy that it leaves."""
        return config

    def sampling_mesh(self, mesh: Mesh) -> Mesh:
        """The mesh that its answers are sampled on. mesh: of the run."""
        return mesh

    def check(self, config: ModelConfig | None, mesh: Mesh) -> None:
        """Raise ValueError, naming the field, where the settings do not fit the mesh or the model. config:
        with which it works; None where a stage has no policy.
        """

    def check_data(self, context: "Context") -> None:
        """Raise ValueError where what it reads does not fit the settings, before any stage runs."""
        for source in self.sources:
            source.check(context)

    def programs(
        self, config: ModelConfig, mesh: Mesh, others: Mapping[str, ModelConfig]
    ) -> list[Program]:
        """What it compiles. others: the ModelConfig of the policy that each stage leaves."""
        return []

    def run(self, context: "Context") -> Any:
        """Run on every process: -> the Policy that it leaves, or what it measured, as JSON holds it."""
        raise NotImplementedError

    def is_left(self, folder: Path) -> bool:
        """Whether `folder` has what run leaves there, or what the driver writes of it."""
        return is_orbax(folder / "params") or is_adapter(folder / "adapter")

    def path_of_params(self, folder: Path) -> str | Path:
        """Where the parameters are that others read. folder: of the stage."""
        return folder / ("adapter" if is_adapter(folder / "adapter") else "params")

    def params(self, context: "Context", trained: bool, mesh: Mesh):
        """The parameters that it left, on the mesh; see Context.load."""
        folder = context.folder / self.name
        if is_adapter(folder / "adapter"):
            return context.beside(self, mesh).with_adapter_of(folder / "adapter", mesh).params
        dtype = "float32" if trained else context.policies[self.name].config.dtype
        return load_orbax(folder / "params", dtype, mesh)[1]

    def measurements(self) -> dict[str, str]:
        """{measurement: its file below the run's folder}."""
        return {self.name: f"{self.name}/{SCORES}"} if self.measures else {}

    def scores(self, found: Any) -> dict[str, list]:
        """{score: [mean, low, high]} of a measurement, with 95% intervals, the headline first. low and high
        are None for a score without an interval. Default: the lists of three in a dict.
        """
        return {n: s for n, s in found.items() if isinstance(s, list) and len(s) == 3}


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What a stage gets in a run.

    run: of its training, whose folder has its checkpoints. folder: of the whole run. stages: those of the
    list. policies: name -> the Policy that a stage leaves, without parameters. opened: closes what was
    opened, at the end of the run. memo: of `once`. held: the policy on the devices that the stage before used
    or left.
    """

    stage: Stage
    run: Run
    folder: Path
    stages: Mapping[str, Stage]
    policies: Mapping[str, Policy]
    opened: contextlib.ExitStack
    memo: dict[Hashable, Any]
    held: dict[Hashable, Policy]

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run."""
        return self.run.mesh

    @property
    def settings(self) -> Any:
        """The stage's settings."""
        return self.stage.settings

    @property
    def own(self) -> Path:
        """The stage's folder."""
        return self.folder / self.stage.name

    @property
    def data(self) -> Path:
        """The folder of the datasets that a run builds from files."""
        return self.folder / "data"

    @property
    def policy(self) -> Policy:
        """The Policy with which the stage works, without parameters."""
        found = self.policies[self.stage.start or self.stage.name]
        return dataclasses.replace(found, config=self.stage.model(found.config))

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of the first call of make() for this key, in this run."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def load(self, name: str, *, trained: bool = True, mesh: Mesh | None = None) -> Policy:
        """The policy that a stage left, to read. trained: in float32, as it was trained; else in its model's
        dtype. Beside an adapter the rest has that dtype. mesh: in place of the run's.
        """
        key = name, trained
        if mesh is None and key in self.held:
            return self.held[key]
        # The memory is for one
        self.held.clear()
        params = self.stages[name].params(self, trained, mesh or self.mesh)
        policy = self.policies[name].at(params)
        if mesh is None and self.stage.measures:
            # The next stage may begin from it
            self.held[key] = policy
        return policy

    def begin(self) -> Policy:
        """The policy from which the stage begins: its own, to donate, unless it measures."""
        stage = self.stage
        if stage.adapter is None:
            policy = self.load(stage.start)
        else:
            key = stage.start, "beside an adapter"
            if key not in self.held:
                self.held.clear()
                with stage.at(), at("adapter"):
                    base = self.beside(stage, self.mesh)
                    config = stage.model(base.config)
                    params = with_adapter(config, base.params, stage.adapter, self.mesh, stage.seed)
                self.held[key] = base.at(params)
            policy = self.held[key]
        if not stage.measures:
            self.held.clear()
        return dataclasses.replace(policy, config=stage.model(policy.config))

    def beside(self, stage: Stage, mesh: Mesh) -> Policy:
        """The policy that stays as it is beside a stage's adapter, in its model's dtype or in int8."""
        return frozen(
            lambda mesh: self.load(stage.start, trained=False, mesh=mesh), stage.adapter, mesh
        )

    def path_of(self, name: str) -> str | Path:
        """Where the parameters are that a stage left; those of a checkpoint stay where they are."""
        return self.stages[name].path_of_params(self.folder / name)


class Answering(NamedTuple):
    """What a plan knows of a stage's answers: their options, the number of prompts, n samples of each.

    prompt_length: tokens of the longest prompt; None where only the data say. dtype: of the parameters.
    turns: those of a conversation; 0 for a single one.
    """

    options: AnswerOptions
    prompts: int
    n: int = 1
    prompt_length: int | None = None
    dtype: str = "float32"
    turns: int = 0
