"""Run one experiment: flags -> config -> mesh -> recipe.

    python launch/train.py --config=configs/grpo_small.py[:ARG] [--config.FIELD=VALUE ...]
        [--workdir=FOLDER] [--distributed=auto|yes|no] [--check] [--redo] [--strict]
        [--profile=STEP:COUNT] [--rehearse=v5e|v5p|v6e|tpu7x|gpu] [--wandb=PROJECT]
        [--watchdog=FACTOR] [--watchdog_requeue]
    python launch/train.py --fields [RECIPE]

`--config=` may be left out, and the name grpo_small stands for that file. Run the command again to
resume from the last checkpoint, or to see that the run is complete. VALUE is written as in Python:
3, 1e-4, "['a.jsonl', 'b.jsonl']", "{'fsdp': 4}"; see launch/config_file.py. SIGTERM or Ctrl-C saves
after the current step and exits with 75 (start me again). A second one exits at once, with 130
after Ctrl-C. A mistake in the config or the work directory is one message and exit status 2. A
fault of the run itself is one message and exit status 3 to 7 (launch/README.md).

--fields lists every FIELD of a recipe with its type, default and meaning. With --config it has the
experiment's values in place of defaults, and without both it lists the recipes.
"""

import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from launch import common, fields


def define_flags():
    """Define the program's flags."""
    common.define_config()
    common.define_run("runs/FILE_ARG_seedN")
    meaning = "List the fields of RECIPE or of --config, or the recipes; run nothing."
    flags.DEFINE_string("fields", None, meaning)


def parse_flags(argv):
    """Parse the command line; with --fields, print fields and exit."""
    others, recipe = fields.split_arguments(argv)
    if recipe is None:
        return common.parse_config(argv)
    config = common.parse_config(others) if others[1:] else None
    with common.one_message():
        print(fields.shown(recipe, config))
    sys.exit(0)


def main(config):
    """Run the experiment of a config."""
    common.start(config, common.given_workdir(flags.FLAGS.config, config.get("seed")))


if __name__ == "__main__":
    define_flags()
    common.run_program(main, parse_flags)
