"""Stage, Source and Context: a line of a recipe's list, what it reads, and what a run gives it.

Tests: tests/recipes/test_driver.py, tests/recipes/test_results.py.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.adapter import is_adapter
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax
from deepseek_jax.costs.program import Program
from deepseek_jax.errors import at
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.adapters import with_adapter
from deepseek_jax.models.network_config import Network, require_model_config
from deepseek_jax.models.params import count_params
from deepseek_jax.recipes.origin import Origin, frozen
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.training.run import Run
from deepseek_jax.training.settings import FitSettings
from deepseek_jax.trees import PyTree

# The file of a measurement, in its stage's folder
SCORES = "scores.json"

Result = TypeVar("Result")


class Source:
    """An input of a stage, as a value.

    Each kind has read(context), which returns the input and is called only in a run.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the stages that the input depends on."""
        return ()

    def covers(self, context: "Context") -> Any:
        """Return what the input depends on, for the stage's hash: data, digests of code.

        The stages in `reads` are left out: they have their own place in the hash.
        """

    def check(self, context: "Context") -> None:
        """Raise ValueError, before any stage runs, for data that are missing or do not fit."""

    def describe(self, context: "Context") -> str:
        """Describe the data in words; return "" if another source describes them."""
        return ""


@dataclasses.dataclass(frozen=True, eq=False)
class StageFolder(Source):
    """The folder of an earlier stage, with everything that it wrote."""

    stage: str

    @property
    @override
    def reads(self):
        return (self.stage,)

    def read(self, context: "Context") -> Path:
        """Return the folder of the stage."""
        return context.folder / self.stage


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A line of a recipe's list. A kind of stage is a subclass with fields for what it needs.

    Attributes:
        name: Its folder, its phase in the metrics and, if `path` is None, its block of the config.
        settings: Its block of the config.
        seed: The seed of all that it draws.
        start: The stage with the policy that it begins from; "" for the first stage of a line.
        origin: The Origin of the first stage of a line.
        adapter: The adapter that it trains; None if it trains the whole policy.
        path: The path of its block in the config; None if that is its name, "" for the whole
            config.
        label: The prefix of its programs' names; None for "NAME: ".
        title: Its title on the page.
        expect: What a reader can expect of it, in a sentence that is printed as it begins.
        leaves_policy: True if it produces a policy.
        measures: True if it measures a policy.
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
    expect: str = ""

    leaves_policy: ClassVar[bool] = True
    measures: ClassVar[bool] = False

    def __post_init__(self):
        # Training draws by the seed in its settings
        if isinstance(self.settings, FitSettings):
            seeded_settings = dataclasses.replace(self.settings, seed=self.seed)
            object.__setattr__(self, "settings", seeded_settings)

    @property
    def sources(self) -> list[Source]:
        """The fields that are sources."""
        return [value for value in vars(self).values() if isinstance(value, Source)]

    @property
    def reads(self) -> list[str]:
        """The names of the stages that it depends on, without its start."""
        return list(dict.fromkeys(name for source in self.sources for name in source.reads))

    @property
    def config_path(self) -> str:
        """The dotted path of its settings, which begins with "config"."""
        path = self.name if self.path is None else self.path
        return f"config.{path}" if path else "config"

    @property
    def prefix(self) -> str:
        """The prefix of its programs' names."""
        return f"{self.name}: " if self.label is None else self.label

    def at(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that puts the path of the settings before an error's message."""
        return at(self.config_path)

    def model(self, config: Network) -> Network:
        """Return the Network that the stage works with.

        Args:
            config: The Network of the policy that it begins from.
        """
        return config

    def leaves(self, config: Network) -> Network:
        """Return the Network of the policy that the stage produces.

        Args:
            config: The Network of the policy that it begins from.
        """
        return config

    def num_params(self, config: Network) -> int:
        """Return the number of parameters of the stage's result.

        Args:
            config: The result of `leaves`.
        """
        return count_params(config)

    def sampling_mesh(self, mesh: Mesh) -> Mesh:
        """Return the mesh on which the stage samples answers.

        Args:
            mesh: The mesh of the run.
        """
        return mesh

    def check(self, config: Network | None, mesh: Mesh) -> None:
        """Raise ValueError, naming the field, if the settings do not fit the mesh or the model.

        Args:
            config: The Network that the stage works with; None for a stage without a policy.
            mesh: The mesh of the run.
        """

    def check_data(self, context: "Context") -> None:
        """Raise ValueError, before any stage runs, if the sources do not fit the settings."""
        for source in self.sources:
            source.check(context)

    def programs(self, config: Network, mesh: Mesh, others: Mapping[str, Network]) -> list[Program]:
        """Return the programs that the stage compiles, for a plan.

        Args:
            config: The Network that the stage works with.
            mesh: The mesh of the run.
            others: {stage: the Network of the policy that it produces}.
        """
        return []

    def run(self, context: "Context") -> Any:
        """Run the stage; every process calls it.

        Returns:
            The Policy that the stage produces, or the result of a measurement, as JSON can hold it.
        """
        raise NotImplementedError

    def is_left(self, folder: Path) -> bool:
        """Return True if a folder has everything that run, or the driver after it, writes there.

        Args:
            folder: The folder of the stage.
        """
        return is_orbax(folder / "params") or is_adapter(folder / "adapter")

    def path_of_params(self, folder: Path) -> str | Path:
        """Return the path from which others read the stage's parameters.

        Args:
            folder: The folder of the stage.
        """
        return folder / ("adapter" if is_adapter(folder / "adapter") else "params")

    def params(self, context: "Context", trained: bool, mesh: Mesh) -> PyTree:
        """Load the parameters that the stage produced onto the mesh; see Context.load."""
        folder = context.folder / self.name
        if is_adapter(folder / "adapter"):
            return context.beside(self, mesh).with_adapter_of(folder / "adapter", mesh).params
        dtype = "float32" if trained else context.policies[self.name].config.dtype
        return load_orbax(folder / "params", dtype, mesh)[1]

    def measurements(self) -> dict[str, str]:
        """Return {measurement: its file below the run's folder}."""
        return {self.name: f"{self.name}/{SCORES}"} if self.measures else {}

    def scores(self, contents: Any) -> dict[str, list]:
        """Return {score: [mean, low, high]} of a measurement, the headline first.

        low and high are the ends of the 95% interval; None for a score without one. By default
        these are the lists of three in a dict.

        Args:
            contents: The content of the measurement's file.
        """
        return {n: s for n, s in contents.items() if isinstance(s, list) and len(s) == 3}


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What a stage gets in a run.

    Attributes:
        stage: The stage.
        run: The Run of the stage's training; its folder has the checkpoints.
        folder: The folder of the whole run.
        stages: {name: stage} of the recipe's list.
        policies: {stage: the Policy that it produces, without parameters}.
        opened: Closes at the end of the run what was opened in it.
        memo: The results of `once`.
        loaded_policies: The policy that the previous stage used or produced, still on the devices.
    """

    stage: Stage
    run: Run
    folder: Path
    stages: Mapping[str, Stage]
    policies: Mapping[str, Policy]
    opened: contextlib.ExitStack
    memo: dict[Hashable, Any]
    loaded_policies: dict[Hashable, Policy]

    @property
    def mesh(self) -> Mesh:
        """The mesh of the run."""
        return self.run.mesh

    @property
    def settings(self) -> Any:
        """The settings of the stage."""
        return self.stage.settings

    @property
    def stage_folder(self) -> Path:
        """The folder of the stage."""
        return self.folder / self.stage.name

    @property
    def data(self) -> Path:
        """The folder of the datasets that a run builds from files."""
        return self.folder / "data"

    @property
    def policy(self) -> Policy:
        """The Policy that the stage works with, without parameters."""
        start_policy = self.policies[self.stage.start or self.stage.name]
        return dataclasses.replace(start_policy, config=self.stage.model(start_policy.config))

    def once(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return make(), called only once for each key in a run."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def load(self, name: str, *, trained: bool = True, mesh: Mesh | None = None) -> Policy:
        """Load the policy that a stage produced, for reading only.

        Args:
            name: The name of the stage.
            trained: True for float32 parameters, as in training; False for the model's dtype. The
                frozen parameters of a policy with an adapter always have the model's dtype.
            mesh: The mesh for the parameters, in place of the run's.
        """
        key = name, trained
        if mesh is None and key in self.loaded_policies:
            return self.loaded_policies[key]
        # The devices have room for one policy
        self.loaded_policies.clear()
        params = self.stages[name].params(self, trained, mesh or self.mesh)
        policy = self.policies[name].with_params(params)
        if mesh is None and self.stage.measures:
            # The next stage may begin from the same policy
            self.loaded_policies[key] = policy
        return policy

    def load_start(self) -> Policy:
        """Load the policy that the stage begins from.

        The stage may donate its arrays, unless it measures.
        """
        stage = self.stage
        if stage.adapter is None:
            policy = self.load(stage.start)
        else:
            key = stage.start, "beside an adapter"
            if key not in self.loaded_policies:
                self.loaded_policies.clear()
                with stage.at(), at("adapter"):
                    base = self.beside(stage, self.mesh)
                    config = require_model_config(stage.model(base.config), "an adapter")
                    params = with_adapter(config, base.params, stage.adapter, self.mesh, stage.seed)
                self.loaded_policies[key] = base.with_params(params)
            policy = self.loaded_policies[key]
        if not stage.measures:
            self.loaded_policies.clear()
        return dataclasses.replace(policy, config=stage.model(policy.config))

    def beside(self, stage: Stage, mesh: Mesh) -> Policy:
        """Load the policy that stays frozen while a stage trains an adapter.

        It is in its model's dtype or in int8.
        """
        assert stage.adapter is not None
        return frozen(
            lambda mesh: self.load(stage.start, trained=False, mesh=mesh), stage.adapter, mesh
        )

    def path_of(self, name: str) -> str | Path:
        """Return the path of a stage's parameters; for a checkpoint, its own path."""
        return self.stages[name].path_of_params(self.folder / name)


class AnswerPlan(NamedTuple):
    """The answers of a stage, as a plan counts them.

    Attributes:
        options: How they are sampled.
        prompts: The number of prompts.
        n: Samples of each prompt.
        prompt_length: Tokens of the longest prompt; None if only the data say.
        dtype: The dtype of the parameters.
        turns: The model's turns in a conversation; 0 for answers of a single turn.
    """

    options: AnswerOptions
    prompts: int
    n: int = 1
    prompt_length: int | None = None
    dtype: str = "float32"
    turns: int = 0
