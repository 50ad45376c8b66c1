"""Train from Python: an experiment in this process, such as a notebook's.

JAX is imported where it is used: a line says that it is.
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
    """What `train` returns.

    complete: False where it stopped after stop_after steps. scores: {measurement: {score: [mean, low, high]}}
    of what the run has measured so far on held-out data, in order, with 95% intervals; low and high are None
    for a score without an interval. The last measurement of a complete run is of what it leaves.
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
    """Run an experiment in this process, resume it, or see that it is complete, as launch/train.py does.

    config: as `config` returns it, or a dict of its fields; in it a function stands for its FILE.py:NAME.
    folder: of the run, or gs://BUCKET/NAME. stop_after: save and return after this number of steps, one more
    where a phase ends there. strict: end at a damaged checkpoint; else an earlier one is used. redo: run the
    stages anew whose config, data or code has changed, which is refused otherwise.
    console_seconds: between lines on the console.

    Ctrl-C or SIGTERM saves after the step at hand and raises KeyboardInterrupt; a second one ends at once.
    Raises ValueError for a mistake, before anything compiles, and an errors.Fault for what the run finds
    wrong with itself. config.xla_flags and settings of malloc apply where JAX has no devices yet; else they
    are this process's own. A process whose folder another one took over ends at once: see owner.owned.
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
    """(whether a signal came, whether to stop after this step); the block ends where a run has stopped."""
    from deepseek_jax.training.run import STOPPED

    steps = itertools.count(1)
    with Stop() as stop:
        try:
            # A phase that this many steps complete does not stop: the next one does, after a step
            yield stop, lambda: stop() or (stop_after is not None and next(steps) >= stop_after)
        except SystemExit as ended:
            if ended.code != STOPPED:
                raise
        finally:
            # What a run leaves in cycles would stay on the device, beside the next run
            gc.collect()
    # Also where the run had nothing left to do: what follows the call should not begin
    if stop():
        raise KeyboardInterrupt("saved; the same call resumes it")
