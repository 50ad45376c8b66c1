"""Plan an experiment for accelerators that are not there: does each program fit, and what does it cost?

    python launch/plan.py --config=configs/pretrain_v3.py[:ARG] --topology=v5p:8x8x16
        [--program=NAME] [--search[=N]] [--config.FIELD=VALUE ...]
    python launch/plan.py --published

It compiles each program of the recipe for the TPU slice, on any machine and without a checkpoint or data,
and needs the wheel libtpu. The largest models take minutes and a few gigabytes; results are cached, so that a
plan that is run again takes seconds. For GPUs, --topology=h100:64 counts what needs no compiler. A mistake is
one message and exit status 2; a program that does not fit is exit status 1.

--search looks for a layout of the updates, among the meshes that split them and have room for their state:

1. micro-batches: more and more, until remat="full" fits the mesh whose collectives cost least;
2. remat: on that mesh, the first policy that fits, from the one that recomputes least on;
3. the mesh: the N (default 3) whose collectives cost least are compiled with both.

It prints the flags of the fastest layout that fits. --published compiles our programs of published training
steps, and prints the predicted and the published times.
"""

import os
import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from deepseek_jax.files import cache_folder, expanded
from deepseek_jax.progress import importing_jax, waiting_for
from launch import common
from launch.planning.topology import (
    ENVIRONMENT,
    EXAMPLES,
    chosen,
    on_gpus,
    planned_mesh,
    recipes_programs,
)

# How many layouts --search compares
COMPILED = 3


def define_flags():
    common.define_config(required=False)
    flags.DEFINE_string("topology", None, f"The devices, as in {EXAMPLES}.")
    flags.DEFINE_bool("published", False, "Predict published steps, whose config is known.")
    for name in ("config", "topology"):
        flags.register_multi_flags_validator(
            [name, "published"],
            lambda given, name=name: given["published"] or given[name] is not None,
            f"Flag --{name} must have a value other than None.",
        )
    flags.DEFINE_string("program", None, "The programs to plan, such as update or 'answers*'.")
    # boolean: absl then takes the flag without a value too
    help = f"Find a layout of the updates, among the best N; N is {COMPILED} without a number."
    flags.DEFINE(CountOfSearch(), "search", None, help, boolean=True)
    flags.DEFINE_string(
        "cache", str(cache_folder("plans")), "The folder of compiled plans; '' for none."
    )


class CountOfSearch(flags.ArgumentParser):
    """The value of --search=N, --search and --nosearch."""

    flag_type = "integer"

    def parse(self, argument):
        """Raises ValueError for what is not a positive number."""
        if argument in ("true", "false", True, False):
            return COMPILED if argument in ("true", True) else None
        if not str(argument).isdigit() or int(argument) < 1:
            raise ValueError(f"{argument} is not a positive number of layouts")
        return int(argument)


def main(config):
    os.environ.update(ENVIRONMENT)
    with common.one_message():
        cache = Path(expanded(flags.FLAGS.cache)) if flags.FLAGS.cache else None
        fits = planned(config, flags.FLAGS.topology, cache, on_gpus(flags.FLAGS.topology or ""))
    sys.exit(0 if fits else 1)


def planned(config, topology: str | None, cache: Path | None, of_gpus: bool):
    """Print what the flags ask for: -> whether it fits. Raises ValueError."""
    # Imported once the environment is set
    with importing_jax() as wait:
        wait.remind()
        import jax
    # JAX keeps what it compiled for a TPU and cannot read it where there is none, which it says each time
    jax.config.update("jax_enable_compilation_cache", False)
    if flags.FLAGS.published:
        from launch.planning.published import published

        return published(cache)
    if flags.FLAGS.search is not None:
        if of_gpus:
            raise ValueError(f"--search compiles for TPUs; --topology={topology} has none")
        from launch.planning.search import search

        return search(config, topology, flags.FLAGS.program, flags.FLAGS.search, cache)
    with waiting_for("listing the programs"):
        mesh, chip = planned_mesh(topology, config.get("mesh", {}), config.get("model", {}))
        programs = chosen(recipes_programs(config, mesh), flags.FLAGS.program)
    from launch.planning.report import print_plan, print_shapes

    if of_gpus:
        return print_shapes([one for one in programs if not one.by_shapes], chip)
    return print_plan(programs, chip, cache)


if __name__ == "__main__":
    define_flags()
    common.run_program(main, common.parse_config)
