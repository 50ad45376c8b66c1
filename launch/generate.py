"""Sample a teacher's answers to prompts and filter them into a dataset.

    python launch/generate.py --config=configs/generate_small.py[:ARG] [--config.FIELD=VALUE ...]
        [--adapter=FOLDER] [--workdir=FOLDER] [--distributed=auto|yes|no]

It works like launch/train.py, for configs of the recipe "generate". Run it again to resume after
the last saved answer. With several processes, each one answers its share of the prompts.
"""

import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from deepseek_jax.recipes.experiment_file import set_field
from launch import common


def define_flags():
    """Define the program's flags."""
    common.define_config()
    flags.DEFINE_string("adapter", None, "Folder of an adapter of config.init_from.")
    common.define_run("runs/FILE_ARG_seedN")


def main(config):
    """Run the experiment of a config with the recipe "generate"."""
    if config.get("recipe") != "generate":
        common.fail(f"config.recipe={config.get('recipe')!r} is for launch/train.py")
    if flags.FLAGS.adapter is not None:
        set_field(config, "adapter", flags.FLAGS.adapter)
    common.start(config, common.given_workdir(flags.FLAGS.config, config.get("seed")))


if __name__ == "__main__":
    define_flags()
    common.run_program(main, common.parse_config)
