"""Where a line of stages has its model, its tokenizer and its template from: a checkpoint or a config."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint, checkpoint_path
from deepseek_jax.errors import CannotPlan, at
from deepseek_jax.hub import hub_id
from deepseek_jax.models import (
    ModelConfig,
    RunSettings,
    build_model,
    how_to_run,
    names_architecture,
)
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.quantized import quantized
from deepseek_jax.parallel.mesh import make_mesh
from deepseek_jax.recipes.conversing import conversing, open_environments
from deepseek_jax.rollout.policy import (
    Policy,
    check_vocabulary,
    described_policy,
    ending_turns,
    load_policy,
)
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import named_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """What the stages of a line share, as a config's block gives it.

    model: the block `model`, fields of ModelConfig, or, with a checkpoint, of RunSettings. template: of
    data.chat. checkpoint: as of load_policy; None for random parameters, which have the tokenizer of this
    name. path, field: of the block in the config, and of its checkpoint. template_path: of the block that
    has the template. positions: in place of the checkpoint's max_position_embeddings. trained: whether all
    parameters are trained, for which a checkpoint may be no adapter. conversing: rollout.settings.Conversing
    of tools and an environment, or None.
    """

    model: dict
    template: str
    checkpoint: str | None = None
    tokenizer: str | None = None
    path: str = ""
    field: str = "init_from"
    template_path: str = "data"
    positions: int | None = None
    trained: bool = True
    conversing: Any = None

    def at(self):
        """A context that puts the path of the block before an error's message."""
        return at(f"config.{self.path}" if self.path else "config")

    def config(self) -> ModelConfig:
        """The ModelConfig as the config and small files say it. Raises CannotPlan as planned_model does."""
        with self.at():
            return self._placed(planned_model(self.model, self.checkpoint, self.field))

    def policy(self, opened: ExitStack) -> Policy:
        """The Policy without parameters. opened: closes the tools and the environment.

        Raises ValueError for all that is wrong with the checkpoint's small files, or with the tokenizer.
        """
        with self.at():
            if self.checkpoint is None:
                policy = self._random()
            else:
                with at(self.field):
                    check_checkpoint(self.checkpoint)
                    policy = described_policy(
                        self.checkpoint,
                        self.model,
                        template=self.template,
                        trained=self.trained,
                    )
        # Raises here, before anything is trained, where the tokenizer lacks the chat template
        with at("config"), at(self.template_path) if self.template_path else nullcontext():
            config = ending_turns(policy.config, policy.tokenizer, self.template)
        policy = dataclasses.replace(policy, config=self._placed(config))
        if self.conversing is None or not self.conversing.converses:
            return policy
        with self.at():
            environments = open_environments(self.conversing, opened)
            return conversing(policy, environments, self.conversing)

    def _random(self):
        config = build_model(self.model)
        with at("tokenizer", "path"):
            tokenizer = named_tokenizer(self.tokenizer)
        check_vocabulary(config, tokenizer)
        return Policy(config, None, tokenizer, self.template)

    def _placed(self, config):
        if self.positions is None:
            return config
        return dataclasses.replace(config, max_position_embeddings=self.positions)

    def load(self, mesh: Mesh, trained: bool) -> Any:
        """The parameters of the checkpoint, in float32 to be trained, else in the model's dtype."""
        with self.at(), at(self.field):
            policy = load_policy(
                self.checkpoint, self.model, mesh, template=self.template, trained=trained
            )
        return policy.params

    def covers(self) -> dict:
        """What the policy depends on, for the hash."""
        shared = {"template": self.template, "positions": self.positions}
        if self.checkpoint is None:
            return shared | {"model": self.config(), "tokenizer": self.tokenizer}
        # Not the architecture, which the checkpoint has to have
        return shared | {"model": how_to_run(self.model), "checkpoint": digest(self.checkpoint)}


def digest(checkpoint: str | Path) -> str:
    """A hash of a checkpoint's files; of one on the hub its name with the commit, which says the same."""
    if hub_id(checkpoint) is not None:
        return str(checkpoint)
    return fingerprint(checkpoint_path(checkpoint))


def planned_model(block: dict, checkpoint: str | Path | None, field: str = "init_from"):
    """The ModelConfig of a config's block `model`, as small files say it. checkpoint: of the start, which
    `field` names, or None.

    Raises CannotPlan where the block does not name the architecture and the checkpoint is not there either.
    """
    if checkpoint is None or names_architecture(block):
        return build_model(block)
    how = dataclasses.asdict(build(RunSettings, how_to_run(block), "model"))
    with at(field):
        path = checkpoint_path(checkpoint, weights=False)
    if path.suffix == ".gguf" or path.exists():
        with at(field):
            return dataclasses.replace(read_any_config(path), **how)
    raise CannotPlan(
        f"model={block!r} does not name the architecture of {checkpoint}, and the checkpoint is not there: a "
        "plan needs one of them; set model to one of configs/models.py"
    )


def frozen(load: Callable[[Mesh], Policy], adapter: AdapterSettings, mesh: Mesh) -> Policy:
    """The Policy that load(mesh) reads, which stays as it is beside an adapter. adapter.quantize: in int8."""
    if adapter.quantize is None:
        return load(mesh)
    if mesh.size > 1:
        policy = load(mesh)
        return policy.at(quantized(policy.params))
    # In the host's memory, because a single device may not hold the weights before they are quantized
    host = make_mesh(devices=jax.local_devices(backend="cpu")[:1])
    with jax.set_mesh(host):
        policy = load(host)
        params = quantized(policy.params)
    return policy.at(jax.device_put(params, NamedSharding(mesh, PartitionSpec())))
