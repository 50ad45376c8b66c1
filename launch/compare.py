"""Compare models in service: bytes, chips and the speed at which memory lets them decode, beside a teacher's.

    python launch/compare.py [--models=deepseek_v3,r1_distill_qwen_7b,...] [--tpu=v5p]
        [--batch_size=128] [--context_length=4096] [--measure]

--models are names of configs/models.py, the teacher first; the default is R1 and its six students. Nothing
of that size is made: a table of shapes is enough. --measure also times the small teacher and its students on
this machine, with random weights. A mistake is one message and exit status 2.
"""

import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

import flax.linen as nn
import jax
from absl import app, flags
from rich.console import Console

from configs import models as sizes
from deepseek_jax.costs.chips import CHIPS
from deepseek_jax.costs.deployment import served
from deepseek_jax.evaluation.decode_speed import decode_speeds
from deepseek_jax.models import build_model, init_params
from deepseek_jax.reports import deployment as report
from deepseek_jax.settings import suggest
from launch.train import fail, raised_here

TEACHER = "deepseek_v3"  # R1's sizes are V3's
STUDENTS = [
    f"r1_distill_{name}"
    for name in ("qwen_1_5b", "qwen_7b", "llama_8b", "qwen_14b", "qwen_32b", "llama_70b")
]
SMALL = ("deepseek_v3_tiny", "qwen2_tiny", "llama_tiny")  # for --measure: configs/distill_small.py
MEASURED = dict(batch_size=8, new_tokens=128, repeats=5)


def define_flags():
    flags.DEFINE_list("models", [TEACHER, *STUDENTS], "Names of configs/models.py, teacher first.")
    flags.DEFINE_string("tpu", "v5p", f"The chip: {', '.join(CHIPS)}.")
    flags.DEFINE_integer("batch_size", 128, "Sequences decoded at once, in the large batch.")
    flags.DEFINE_integer("context_length", 4096, "Tokens that each of them has in its cache.")
    flags.DEFINE_bool("measure", False, "Time the small teacher and students on this machine too.")


def named_models(names):
    """name -> ModelConfig as it is served. Raises ValueError for a name that configs/models.py lacks."""
    known = [name for name, f in inspect.getmembers(sizes, inspect.isfunction) if name[0] != "_"]
    for name in names:
        if name not in known:
            raise ValueError(f"--models={name} is none; {suggest(name, known)}")
    return {
        name: served(build_model(getattr(sizes, name)(), f"configs/models.py: {name}"))
        for name in names
    }


def check_workload(models, batch_size, context_length):
    """Raises ValueError for a batch of nothing, and for contexts that a model does not reach."""
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
    """The table of small models that decode on this machine, with random weights."""
    make = jax.jit(lambda rng, config: nn.unbox(init_params(config, rng)), static_argnums=1)
    made = {name: (config, make(jax.random.key(0), config)) for name, config in models.items()}
    speeds = decode_speeds(made, **MEASURED)
    caption = (
        f"{MEASURED['batch_size']} sequences of {MEASURED['new_tokens']} sampled tokens on "
        f"{jax.devices()[0].device_kind}, each config's dtype, random weights; median of "
        f"{MEASURED['repeats']} rounds in turn"
    )
    return report.measured_table(models, speeds, caption)


def parse_flags(argv):
    """absl's parser, with a mistake of the command line as one message and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        fail(error)
    if rest[1:]:
        fail(f"{' '.join(rest[1:])} is no flag; models go into --models=NAME,NAME")
    return rest


def main(argv):
    del argv  # parse_flags has read it
    values = flags.FLAGS
    workload = dict(batch_size=values.batch_size, context_length=values.context_length)
    try:
        if values.tpu not in CHIPS:
            raise ValueError(f"--tpu={values.tpu} is none; {suggest(values.tpu, CHIPS)}")
        models = named_models(values.models)
        check_workload(models, **workload)
    except ValueError as error:
        if not raised_here(error):
            raise
        fail(error)
    chip = CHIPS[values.tpu]
    memory = dict(chip_bytes=chip.hbm_bytes, bytes_per_second=chip.hbm_bytes_per_second)
    tables = [
        report.size_table(models),
        report.speed_table(models, chip_name=values.tpu, **memory, **workload),
        report.ratio_table(models, **workload),
    ]
    if TEACHER in models:
        workload["chip_bytes"] = chip.hbm_bytes
        tables.append(report.claims_table(models[TEACHER], models, **workload))
    if values.measure:
        tables.append(measured(named_models(SMALL)))
    for table in filter(None, tables):
        Console(width=110).print(table, "")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
