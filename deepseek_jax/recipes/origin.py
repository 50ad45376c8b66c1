"""The model, tokenizer and template of a line of stages, from a checkpoint or a config.

Tests: tests/recipes/distill/test_run.py, tests/recipes/generate/test_conversations.py.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.folder import fingerprint
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.locate import check_checkpoint, checkpoint_path
from deepseek_jax.errors import CannotPlan, at
from deepseek_jax.hub import hub_id
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.config import RunSettings, how_to_run, names_architecture
from deepseek_jax.models.network_config import Network, build_model, run_as
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
from deepseek_jax.rollout.settings import Conversing
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import named_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Model, tokenizer and template from which a line of stages begins.

    Attributes:
        model: The block `model`: fields of Network, or, with a checkpoint, of RunSettings.
        template: A template of data.chat.
        checkpoint: What load_policy reads; None for random parameters.
        tokenizer: The name of the tokenizer that random parameters have.
        path: The path of the block in the config.
        field: The block's field that names the checkpoint.
        template_path: The path of the block that has the template.
        positions: Replaces the model's max_position_embeddings, such as a checkpoint's; None keeps
            it.
        trained: True if all parameters are trained; then the checkpoint must not be an adapter.
        conversing: The settings of tools and an environment, or None.
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
    conversing: Conversing | None = None

    def at(self) -> AbstractContextManager[None]:
        """Return a context that puts the path of the block before an error's message."""
        return at(f"config.{self.path}" if self.path else "config")

    def config(self) -> Network:
        """Return the Network, from the config and small files.

        Raises:
            CannotPlan: As planned_model does.
        """
        with self.at():
            return self._placed(planned_model(self.model, self.checkpoint, self.field))

    def policy(self, opened: ExitStack) -> Policy:
        """Return the Policy without parameters.

        Args:
            opened: The ExitStack that closes the tools and the environment.

        Raises:
            ValueError: The checkpoint's small files or the tokenizer are wrong.
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
        # Raises before anything is trained if the tokenizer lacks the chat template
        with at("config"), at(self.template_path) if self.template_path else nullcontext():
            config = ending_turns(policy.config, policy.tokenizer, self.template)
        policy = dataclasses.replace(policy, config=self._placed(config))
        if self.conversing is None or not self.conversing.converses:
            return policy
        with self.at():
            environments = open_environments(self.conversing, opened)
            return conversing(policy, environments, self.conversing)

    def _random(self):
        # Of the two, a line has a checkpoint or a tokenizer
        assert self.tokenizer is not None
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
        """Load the checkpoint's parameters: in float32 to train them, else in the model's dtype."""
        assert self.checkpoint is not None, "random parameters are drawn, not loaded"
        with self.at(), at(self.field):
            policy = load_policy(
                self.checkpoint, self.model, mesh, template=self.template, trained=trained
            )
        return policy.params

    def covers(self) -> dict:
        """Return what the policy depends on, for the hash of a stage."""
        shared = {"template": self.template, "positions": self.positions}
        if self.checkpoint is None:
            return shared | {"model": self.config(), "tokenizer": self.tokenizer}
        # The architecture is left out: it has to be the checkpoint's
        return shared | {"model": how_to_run(self.model), "checkpoint": digest(self.checkpoint)}


def digest(checkpoint: str | Path) -> str:
    """Return a hash of a checkpoint's files.

    For a hub name it is the name with its commit, which identifies the files as well.
    """
    if hub_id(checkpoint) is not None:
        return str(checkpoint)
    return fingerprint(checkpoint_path(checkpoint))


def planned_model(block: dict, checkpoint: str | Path | None, field: str = "init_from") -> Network:
    """Return the Network of a config's block `model`, from small files.

    Args:
        block: The block.
        checkpoint: The checkpoint that the training starts from, or None.
        field: The config's field that names the checkpoint.

    Raises:
        CannotPlan: The block does not name the architecture, and the checkpoint is not there.
    """
    if checkpoint is None or names_architecture(block):
        return build_model(block)
    settings = build(RunSettings, how_to_run(block), "model")
    with at(field):
        path = checkpoint_path(checkpoint, weights=False)
    if path.suffix == ".gguf" or path.exists():
        with at(field):
            return run_as(read_any_config(path), settings)
    raise CannotPlan(
        f"model={block!r} does not name the architecture of {checkpoint}, and the checkpoint is not there: a "
        "plan needs one of them; set model to one of configs/models.py"
    )


def frozen(load: Callable[[Mesh], Policy], adapter: AdapterSettings, mesh: Mesh) -> Policy:
    """Load the policy that stays frozen while an adapter is trained.

    Args:
        load: Reads the policy onto a mesh.
        adapter: With quantize, the policy is in int8.
        mesh: The mesh of the result.
    """
    if adapter.quantize is None:
        return load(mesh)
    if mesh.size > 1:
        policy = load(mesh)
        return policy.with_params(quantized(policy.params))
    # Quantize in the host's memory: a single device may be too small for the full weights
    host = make_mesh(devices=jax.local_devices(backend="cpu")[:1])
    with jax.set_mesh(host):
        policy = load(host)
        params = quantized(policy.params)
    return policy.with_params(jax.device_put(params, NamedSharding(mesh, PartitionSpec())))
