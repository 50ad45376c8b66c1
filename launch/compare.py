"""Compare the cost of serving models and their teacher: bytes, chips, decoding speed.

    python launch/compare.py [--models=deepseek_v3,r1_distill_qwen_7b,...] [--tpu=v5p]
        [--batch_size=128] [--context_length=4096] [--measure]

--models are names of configs/models.py, the teacher first; the default is R1 and its six students.
The tables need only the shapes of the parameters. The speed in them is the most that memory
bandwidth allows. --measure also times the small teacher and its students on this machine, with
random weights. A mistake is one message and exit status 2.
"""

import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from configs import models as sizes
from deepseek_jax.costs.chips import CHIPS
from deepseek_jax.errors import at, suggest
from launch import common

# R1 has the sizes of V3
TEACHER = "deepseek_v3"
STUDENTS = [
    f"r1_distill_{name}"
    for name in ("qwen_1_5b", "qwen_7b", "llama_8b", "qwen_14b", "qwen_32b", "llama_70b")
]
# Teacher and students of configs/distill_small.py, for --measure
SMALL = ("deepseek_v3_tiny", "qwen2_tiny", "llama_tiny")
# With --measure: sequences, new tokens of each, and rounds in which every model has a turn
MEASURED_BATCH, NEW_TOKENS, REPEATS = 8, 128, 5


def define_flags():
    """Define the program's flags."""
    flags.DEFINE_list("models", [TEACHER, *STUDENTS], "Names of configs/models.py, teacher first.")
    flags.DEFINE_string("tpu", "v5p", f"The chip: {', '.join(CHIPS)}.")
    flags.DEFINE_integer("batch_size", 128, "Sequences decoded at once, in the large batch.")
    flags.DEFINE_integer("context_length", 4096, "Tokens of each sequence in the cache.")
    flags.DEFINE_bool("measure", False, "Time the small teacher and students on this machine too.")


def named_models(names: Sequence[str]):
    """Return {name: ModelConfig as it is served}.

    Raises:
        ValueError: There are no names, or configs/models.py lacks one.
    """
    from deepseek_jax.costs.deployment import served
    from deepseek_jax.models.network_config import build_model, require_model_config

    known_names = [
        name for name, f in inspect.getmembers(sizes, inspect.isfunction) if name[0] != "_"
    ]
    if not names:
        raise ValueError(f"--models= names no model; allowed: {', '.join(known_names)}")
    for name in names:
        if name not in known_names:
            raise ValueError(
                f"--models={name} is not in configs/models.py; {suggest(name, known_names)}"
            )
    models = {
        name: build_model(getattr(sizes, name)(), f"configs/models.py: {name}") for name in names
    }
    with at("--models"):
        return {
            name: served(require_model_config(model, "this table"))
            for name, model in models.items()
        }


def check_workload(models: dict, batch_size: int, context_length: int):
    """Raise ValueError if the batch or context is empty, or the context too long for a model."""
    for flag, value in (("batch_size", batch_size), ("context_length", context_length)):
        if value < 1:
            raise ValueError(f"--{flag}={value} must be at least 1")
    for name, config in models.items():
        if context_length > config.max_position_embeddings:
            raise ValueError(
                f"--context_length={context_length} is more than the {config.max_position_embeddings} of "
                f"{name}; lower it, or leave {name} out of --models"
            )


def measured(models):
    """Measure decoding speeds on this machine, with random weights, and return their table."""
    import flax.linen as nn
    import jax

    from deepseek_jax.evaluation.decode_speed import decode_speeds
    from deepseek_jax.models.params import init_params
    from deepseek_jax.reports import deployment as report

    make_params = jax.jit(lambda rng, config: nn.unbox(init_params(config, rng)), static_argnums=1)
    random_models = {
        name: (config, make_params(jax.random.key(0), config)) for name, config in models.items()
    }
    speeds = decode_speeds(
        random_models, batch_size=MEASURED_BATCH, new_tokens=NEW_TOKENS, repeats=REPEATS
    )
    caption = (
        f"{MEASURED_BATCH} sequences of {NEW_TOKENS} sampled tokens on "
        f"{jax.devices()[0].device_kind}, each config's dtype, random weights; median of "
        f"{REPEATS} rounds in turn"
    )
    return report.measured_table(models, speeds, caption)


def tables(models: dict, tpu: str, batch_size: int, context_length: int):
    """Yield the tables that only need shapes.

    Args:
        tpu: A key of CHIPS.
    """
    from deepseek_jax.reports import deployment as report

    chip = CHIPS[tpu]
    yield report.size_table(models)
    yield report.speed_table(
        models,
        chip_name=tpu,
        chip_bytes=chip.hbm_bytes,
        bytes_per_second=chip.hbm_bytes_per_second,
        batch_size=batch_size,
        context_length=context_length,
    )
    yield report.ratio_table(models, batch_size=batch_size, context_length=context_length)


def main(argv):
    """Print the tables that the flags ask for."""
    from rich.console import Console

    # common.parse_flags has already read it
    del argv
    flag_values = flags.FLAGS
    # Shapes need no accelerator. Without this, JAX looks for one and prints a warning if there is
    # none
    if not flag_values.measure:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with common.one_message():
        if flag_values.measure:
            import jax

            # A missing device is reported here: an error inside jit has another traceback
            jax.devices()
        if flag_values.tpu not in CHIPS:
            message = (
                f"--tpu={flag_values.tpu} is not a known chip; {suggest(flag_values.tpu, CHIPS)}"
            )
            raise ValueError(message)
        models = named_models(flag_values.models)
        check_workload(models, flag_values.batch_size, flag_values.context_length)
    report_tables = list(
        tables(models, flag_values.tpu, flag_values.batch_size, flag_values.context_length)
    )
    if flag_values.measure:
        report_tables.append(measured(named_models(SMALL)))
    for table in report_tables:
        Console(width=110).print(table, "")


if __name__ == "__main__":
    define_flags()
    common.run_program(main, common.parse_flags)
