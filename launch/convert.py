"""Turn one checkpoint into another.

    python launch/convert.py --from=FOLDER_OR_GGUF --to=FOLDER
        [--format=hf|orbax] [--like=FOLDER] [--fp8] [--dtype=float32|bfloat16]

Reads a Hugging Face folder, a .gguf file, or what --format=orbax writes: an Orbax checkpoint of the
parameters with config.json beside it. Writes a Hugging Face folder, or that. --like names the Hugging Face
folder that the parameters come from: its dtypes, tokenizer and further config fields are kept, and its
unchanged tensors byte for byte. A .gguf file's own tokenizer goes along. A mistake is one message and exit
status 2; nothing half-written stays.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

import jax
from absl import app, flags

from deepseek_jax import checkpoint
from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer

FROM = flags.DEFINE_string(
    "from", None, "Hugging Face folder, .gguf file or Orbax folder.", required=True
)
TO = flags.DEFINE_string("to", None, "Folder to write; it must be new or empty.", required=True)
FORMAT = flags.DEFINE_enum("format", "hf", ["hf", "orbax"], "What to write.")
LIKE = flags.DEFINE_string("like", None, "Hugging Face folder whose dtypes and files to keep.")
FP8 = flags.DEFINE_bool("fp8", False, "Quantise the projections as DeepSeek-V3 does.")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of the parameters; default as stored."
)


def convert(source, target, *, form="hf", like=None, fp8=False, dtype=None):
    """Read source, write target in form "hf" or "orbax". Raises ValueError as checkpoint's functions do."""
    source = Path(source)
    if form == "orbax" and (like or fp8):
        raise ValueError(
            "--like and --fp8 say how to write a Hugging Face folder; leave them out of --format=orbax"
        )
    tokenizer = None
    if source.suffix == ".gguf":
        config, params = checkpoint.load_gguf(source, dtype)
        if form == "hf":
            tokenizer = gguf_tokenizer(source)  # here: its errors come before anything is written
    elif checkpoint.is_orbax(source):
        config, params = checkpoint.load_orbax(source, dtype)
    else:
        config, params = checkpoint.load_hf(source, dtype)
    if form == "orbax":
        checkpoint.save_orbax(target, config, params)
        return config, params
    checkpoint.save_hf(target, config, params, like=like, fp8=fp8)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    return config, params


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    try:
        config, params = convert(
            FROM.value,
            TO.value,
            form=FORMAT.value,
            like=LIKE.value,
            fp8=FP8.value,
            dtype=DTYPE.value,
        )
    except ValueError as error:
        print(f"convert: {error}", file=sys.stderr)
        sys.exit(2)
    leaves = jax.tree.leaves(params)
    print(f"{TO.value}: {config.model_type}, {sum(leaf.size for leaf in leaves):,} parameters")


if __name__ == "__main__":
    app.run(main)
