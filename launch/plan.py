"""Plan an experiment for absent accelerators: does each program fit, and what does it cost?

    python launch/plan.py --config=configs/pretrain_v3.py[:ARG] --topology=v5p:8x8x16
        [--program=NAME] [--search[=N]] [--config.FIELD=VALUE ...]
    python launch/plan.py --published

It compiles each program of the recipe for the TPU slice, on any machine and without a checkpoint or
data. It needs the wheel libtpu. The largest models take minutes and a few gigabytes. Results are
cached, so the same plan takes seconds the next time. For GPUs, --topology=h100:64 counts what needs
no compiler. A mistake is one message and exit status 2. If a program does not fit, the exit status
is 1.

--search looks for a layout of the updates, among the meshes that split them and have room for their
state:

1. micro-batches: more and more, until remat="full" fits the mesh with the cheapest collectives;
2. remat: on that mesh, the first policy that fits, starting with the one that recomputes least;
3. the mesh: the N (default 3) meshes with the cheapest collectives are compiled with both.

It prints the flags of the fastest layout that fits. --published compiles our programs of published
training steps, and prints the predicted and the published times.
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

# How many layouts --search compares without a number
COMPILED = 3


def define_flags():
    """Define the program's flags."""
    common.define_config(required=False)
    meaning = f"The devices, as in {EXAMPLES}; a second argument without a flag is this one."
    flags.DEFINE_string("topology", None, meaning)
    flags.DEFINE_bool("published", False, "Predict published steps, whose config is known.")
    for name in ("config", "topology"):
        flags.register_multi_flags_validator(
            [name, "published"],
            lambda values, name=name: values["published"] or values[name] is not None,
            f"Flag --{name} must have a value other than None.",
        )
    flags.DEFINE_string("program", None, "The programs to plan, such as update or 'answers*'.")
    # With boolean=True, absl takes the flag without a value too
    help = f"Find a layout of the updates, among the best N; N is {COMPILED} without a number."
    flags.DEFINE(CountOfSearch(), "search", None, help, boolean=True)
    flags.DEFINE_string(
        "cache", str(cache_folder("plans")), "The folder of compiled plans; '' for none."
    )


class CountOfSearch(flags.ArgumentParser):
    """The parser of --search=N, --search and --nosearch."""

    flag_type = "integer"

    def parse(self, argument):
        """Return the number of layouts; None for --nosearch.

        Raises:
            ValueError: The argument is not a positive number.
        """
        if argument in ("true", "false", True, False):
            return COMPILED if argument in ("true", True) else None
        if not str(argument).isdigit() or int(argument) < 1:
            raise ValueError(f"{argument} is not a positive number of layouts")
        return int(argument)


def main(config):
    """Print the plan that the flags ask for, and exit with status 0 if everything fits, else 1."""
    os.environ.update(ENVIRONMENT)
    with common.one_message():
        cache = Path(expanded(flags.FLAGS.cache)) if flags.FLAGS.cache else None
        fits = planned(config, flags.FLAGS.topology, cache, on_gpus(flags.FLAGS.topology or ""))
    sys.exit(0 if fits else 1)


def planned(config, topology: str | None, cache: Path | None, of_gpus: bool):
    """Print what the flags ask for.

    Args:
        cache: The folder of compiled plans; None for no cache.
        of_gpus: True if the topology has GPUs.

    Returns:
        Whether it fits.

    Raises:
        ValueError: The flags or the config have a mistake.
    """
    # Imported only here, because main has to set the environment before
    with importing_jax() as wait:
        wait.remind()
        import jax
    # JAX would store programs for a TPU, could not read them without a TPU, and would warn each
    # time
    jax.config.update("jax_enable_compilation_cache", False)
    if flags.FLAGS.published:
        from launch.planning.published import published

        return published(cache)
    # The validators of define_flags
    assert topology is not None
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
        return print_shapes([program for program in programs if not program.by_shapes], chip)
    return print_plan(programs, chip, cache)


def parse_flags(argv):
    """Parse the command line; its first argument without a flag is --config, the second one --topology."""
    return common.parse_config(argv, "topology")


if __name__ == "__main__":
    define_flags()
    common.run_program(main, parse_flags)
