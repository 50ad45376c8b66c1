"""Have a teacher answer prompts, and keep what is worth learning from, as a dataset.

    python launch/generate.py --config=configs/generate_small.py[:ARG] [--config.FIELD=VALUE ...]
        [--workdir=FOLDER] [--distributed]

As launch/train.py, for a config of the recipe "generate": run it again to go on behind the last file that
is whole. With --distributed each process answers its own share of the prompts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

from absl import app, flags

from launch import train


def main(argv):
    if flags.FLAGS.config.get("recipe") != "generate":
        train.fail(f"config.recipe={flags.FLAGS.config.get('recipe')!r} is for launch/train.py")
    train.main(argv)


if __name__ == "__main__":
    train.define_flags()
    app.run(main, flags_parser=train.parse_flags)
