"""Training from Python: an experiment that runs in this process, such as a notebook's.

JAX is imported where it is used: a line announces the import.
"""

import contextlib
import gc
import itertools
import os
from typing import NamedTuple

from ml_collections import ConfigDict

from deepseek_jax.errors import at, renamed
from deepseek_jax.files import absolute
from deepseek_jax.named_code import named, require_no_import
from deepseek_jax.notebooks import plainly
from deepseek_jax.progress import hush, speaking, waiting_for
from deepseek_jax.recipes.environment import has_devices, prepare_process, process_joined
from deepseek_jax.recipes.experiment import results_of, run_recipe
from deepseek_jax.recipes.experiment_file import as_config
from deepseek_jax.recipes.stop import Stop
from deepseek_jax.recipes.workdir import check_starts


class Trained(NamedTuple):
    """Result of `train`.

    Attributes:
        complete: False if the run stopped after stop_after steps.
        scores: {measurement: {score: [mean, low, high]}} on held-out data, in order, for everything
            that the run has measured so far. low and high are the ends of the 95% interval; None
            for a score without one. The last measurement of a complete run is of the run's result.
    """

    complete: bool
    scores: dict[str, dict]


@plainly()
def train(
    config: ConfigDict | dict,
    folder: str | os.PathLike,
    *,
    stop_after: int | None = None,
    strict: bool = False,
    redo: bool = False,
    console_seconds: float | None = None,
) -> Trained:
    """Run an experiment in this process, as launch/train.py does: start it, or resume it.

    A run that is complete is not run again. Ctrl-C or SIGTERM saves after the current step and
    raises KeyboardInterrupt; a second one ends the process at once. If another process takes over
    the folder, this process ends at once: see owner.owned. config.xla_flags and the settings of
    malloc apply only if JAX has no devices yet; otherwise the process keeps its settings.

    Args:
        config: The result of `config`, or a dict of its fields. A function in it stands for its
            FILE.py:NAME.
        folder: The run's folder, or gs://BUCKET/NAME.
        stop_after: Save and return after this number of steps; one step later if a phase ends
            there.
        strict: True to end at a damaged checkpoint; otherwise an earlier one is used.
        redo: True to run the stages again if their config, data or code has changed; otherwise such
            a change is refused.
        console_seconds: Seconds between lines on the console.

    Raises:
        ValueError: A mistake of the user, before anything compiles.
        errors.Fault: The run finds a fault in itself.
        KeyboardInterrupt: The run was interrupted, and has saved.
    """
    if not isinstance(config, (ConfigDict, dict)):
        raise ValueError(f"config={config!r} must be a ConfigDict, or a dict of its fields")
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"stop_after={stop_after} must be at least 1, or None for no such stop")
    require_no_import("trains")
    with at("config"):
        config = as_config(named(config))
    hush(process_joined() != 0)
    with renamed("--workdir", "folder"), renamed("--redo", "redo=True"), speaking():
        with at("folder"):
            workdir = absolute(folder)
        check_starts(config, workdir)
        if not has_devices():
            prepare_process(config.get("xla_flags", ""))
        complete = False
        with _stopping(stop_after) as (stop, after_step):
            run_recipe(
                config,
                workdir,
                lambda: stop,
                strict=strict,
                redo=redo,
                console_seconds=console_seconds,
                after_step=after_step,
            )
            complete = True
        with waiting_for("reading the scores"):
            return Trained(complete, results_of(config, workdir).scores())


@contextlib.contextmanager
def _stopping(stop_after):
    """Yield (the Stop of this process, a function that says whether to stop after this step).

    The block ends without an error when a run stops with the status STOPPED.
    """
    from deepseek_jax.training.run import STOPPED

    steps = itertools.count(1)
    with Stop() as stop:
        try:
            # If a phase ends at exactly this step, the run stops after the first step of the next
            # phase
            yield stop, lambda: stop() or (stop_after is not None and next(steps) >= stop_after)
        except SystemExit as ended:
            if ended.code != STOPPED:
                raise
        finally:
            # Arrays in reference cycles would stay on the device during the next run
            gc.collect()
    # Also if the run was complete: the code after this call should not start
    if stop():
        raise KeyboardInterrupt("saved; the same call resumes it")
