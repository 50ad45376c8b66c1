"""Convert a checkpoint to a Hugging Face or an Orbax folder.

    python launch/convert.py --from=RUN_FOLDER_OR_GGUF --to=FOLDER
        [--format=hf|orbax] [--like=FOLDER] [--fp8] [--dtype=float32|bfloat16] [--adapter=FOLDER]

It reads the folder of a run, or params or adapter in it, a Hugging Face folder or its name on the
hub, or a .gguf file. It writes a Hugging Face or an Orbax folder, with the tokenizer and the
template. An Orbax folder holds a checkpoint of the parameters, and config.json. If --from is an
adapter of a run, it is merged into its base; --adapter names an adapter for any other checkpoint.
--like names the Hugging Face folder that the parameters come from: the new folder gets its dtypes,
its other config fields, files such as generation_config.json, and unchanged tensors byte for byte.
A mistake is one message and exit status 2; nothing half-written stays.
"""

import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from deepseek_jax.errors import Fault, at
from deepseek_jax.progress import importing_jax, waiting_for
from deepseek_jax.recipes.environment import spare_search_for_tpus
from launch import common


def define_flags():
    """Define the program's flags."""
    source = (
        "Folder of a run, of its params or adapter, of Hugging Face's, hub name, or .gguf file."
    )
    flags.DEFINE_string("from", None, source, required=True)
    meaning = (
        "Folder to write; it must be new or empty; a second argument without a flag is this one."
    )
    flags.DEFINE_string("to", None, meaning, required=True)
    flags.DEFINE_enum("format", "hf", ["hf", "orbax"], "What to write.")
    flags.DEFINE_string(
        "like", None, "Hugging Face folder or hub name: its dtypes and other files are kept."
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
    """Read a checkpoint, and write it as another one.

    Args:
        source: The path or hub name to read.
        target: The folder to write, which must be new or empty.
        form: What to write: "hf" or "orbax".
        like: The Hugging Face folder or hub name that gives dtypes and other files; None without
            one.
        fp8: True to quantise the projections as DeepSeek-V3 does.
        dtype: The dtype of the parameters; None keeps the stored one.
        adapter: The folder of an adapter to merge; None without one.

    Returns:
        (the Network, the parameters).

    Raises:
        ValueError: The arguments do not fit together; or see the functions of checkpoint.
    """
    import jax

    from deepseek_jax import checkpoint
    from deepseek_jax.checkpoint.adapter import adapter_scale
    from deepseek_jax.checkpoint.folder import check_new
    from deepseek_jax.checkpoint.hf_config import read_json
    from deepseek_jax.checkpoint.locate import checkpoint_path
    from deepseek_jax.data.carried import files_of
    from deepseek_jax.models.adapters import merged
    from deepseek_jax.models.v4.config import V4Config
    from deepseek_jax.parallel.mesh import make_mesh
    from deepseek_jax.rollout.policy import find_source

    policy_source = find_source(source)
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
            if policy_source.adapter is not None:
                raise ValueError(f"--from={source} is an adapter itself; leave one of them out")
    adapter_folder = adapter or policy_source.adapter
    config, params = checkpoint.load_params(policy_source.base, dtype)
    if fp8 and isinstance(config, V4Config):
        raise ValueError(
            "--fp8 quantises as DeepSeek-V3 does; for DeepSeek-V4 give --like, the folder with the codes"
        )
    files = files_of(checkpoint_path(policy_source.carrier, weights=False))
    if adapter_folder is not None:
        mesh = make_mesh(devices=jax.devices()[:1])
        with at("--adapter"):
            params = merged(checkpoint.load_adapter(adapter_folder, config, params, mesh))
    with waiting_for(f"writing {target}"):
        if form == "orbax":
            checkpoint.save_orbax(target, config, params, files)
        elif isinstance(config, V4Config):
            checkpoint.save_v4(target, config, params, like=like, files=files)
        else:
            checkpoint.save_hf(target, config, params, like=like, fp8=fp8, files=files)
    return config, params


def main(argv):
    """Convert the checkpoint that the flags name, and print its size."""
    # common.parse_flags has already read it
    del argv
    flag_values = flags.FLAGS
    with common.one_message():
        with importing_jax() as wait:
            wait.remind()
            import jax

            spare_search_for_tpus()
            # A missing device is reported before gigabytes are read
            jax.devices()
        try:
            config, params = convert(
                flag_values["from"].value,
                flag_values.to,
                form=flag_values.format,
                like=flag_values.like,
                adapter=flag_values.adapter,
                fp8=flag_values.fp8,
                dtype=flag_values.dtype,
            )
        except Fault:
            raise
        except ValueError as error:
            if common.refused(error) is not None:
                raise
            common.fail(error)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{flag_values.to}: {config.model_type}, {size:,} parameters")


def parse_flags(argv):
    """Parse the command line; its first argument without a flag is --from, the second one --to."""
    return common.parse_flags(argv, "from", "to")


if __name__ == "__main__":
    define_flags()
    common.run_program(main, parse_flags)
