"""Turn one checkpoint into another.

    python launch/convert.py --from=FOLDER_OR_GGUF --to=FOLDER
        [--format=hf|orbax] [--like=FOLDER] [--fp8] [--dtype=float32|bfloat16] [--adapter=FOLDER]

It reads a Hugging Face folder or its name on the hub, a .gguf file or an Orbax folder, and writes a Hugging
Face or an Orbax folder. An Orbax folder holds a checkpoint of the parameters and config.json. --like names
the Hugging Face folder that the parameters come from: the new folder gets its dtypes, its tokenizer, its
other config fields, and unchanged tensors byte for byte. --adapter names an adapter of the parameters, which
is merged into them: the folder adapter of a recipe's run, or one of peft's. The tokenizer of a .gguf file is
written to a Hugging Face folder. A mistake is one message and exit status 2; nothing half-written stays.
"""

import sys
import tempfile
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from deepseek_jax.errors import Fault, at
from launch import common


def define_flags():
    source = "Hugging Face folder or name on the hub, .gguf file or Orbax folder."
    flags.DEFINE_string("from", None, source, required=True)
    flags.DEFINE_string("to", None, "Folder to write; it must be new or empty.", required=True)
    flags.DEFINE_enum("format", "hf", ["hf", "orbax"], "What to write.")
    flags.DEFINE_string(
        "like", None, "Hugging Face folder or name on the hub: its dtypes and files are kept."
    )
    flags.DEFINE_bool("fp8", False, "Quantise the projections as DeepSeek-V3 does.")
    dtypes = ["float32", "bfloat16"]
    flags.DEFINE_string("adapter", None, "Folder of an adapter to merge.")
    flags.DEFINE_enum("dtype", None, dtypes, "Of the parameters; default as stored.")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    form: str = "hf",
    like: str | None = None,
    fp8: bool = False,
    dtype: str | None = None,
    adapter: str | None = None,
):
    """Read source, write target in form "hf" or "orbax". Raises ValueError as checkpoint's functions do."""
    import jax

    from deepseek_jax import checkpoint
    from deepseek_jax.checkpoint.adapter import adapter_scale
    from deepseek_jax.checkpoint.folder import check_new
    from deepseek_jax.checkpoint.hf_config import read_json
    from deepseek_jax.checkpoint.locate import checkpoint_path
    from deepseek_jax.data.gguf_tokenizer import gguf_tokenizer
    from deepseek_jax.files import upload
    from deepseek_jax.models.adapters import merged
    from deepseek_jax.parallel import make_mesh

    source = checkpoint_path(source)
    if form == "orbax" and (like or fp8):
        raise ValueError(
            "--like and --fp8 say how to write a Hugging Face folder; leave them out of --format=orbax"
        )
    # Before gigabytes of parameters are read
    check_new(target)
    if like is not None:
        read_json(checkpoint_path(like, weights=False))
    if adapter is not None:
        with at("--adapter"):
            adapter_scale(adapter)
    config, params = checkpoint.load_params(source, dtype)
    tokenizer = None
    if source.suffix == ".gguf" and form == "hf":
        # Now, so that its errors come before anything is written
        tokenizer = gguf_tokenizer(source)
    if adapter is not None:
        mesh = make_mesh(devices=jax.devices()[:1])
        with at("--adapter"):
            params = merged(checkpoint.load_adapter(adapter, config, params, mesh))
    if form == "orbax":
        checkpoint.save_orbax(target, config, params)
        return config, params
    checkpoint.save_hf(target, config, params, like=like, fp8=fp8)
    if tokenizer is not None:
        # transformers writes local files alone
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            upload(folder, target)
    return config, params


def main(argv):
    import jax

    # common.parse_flags has read it
    del argv
    given = flags.FLAGS
    with common.one_message():
        # One that is missing is said before gigabytes are read
        jax.devices()
        try:
            config, params = convert(
                given["from"].value,
                given.to,
                form=given.format,
                like=given.like,
                adapter=given.adapter,
                fp8=given.fp8,
                dtype=given.dtype,
            )
        except Fault:
            raise
        except ValueError as error:
            if common.refused(error) is not None:
                raise
            common.fail(error)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{given.to}: {config.model_type}, {size:,} parameters")


if __name__ == "__main__":
    define_flags()
    common.run_program(main, common.parse_flags)
