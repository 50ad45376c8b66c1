"""What the programs share: flags, a user's mistakes, signals, and the start of a recipe.

The worker processes of a reward import the program again, so jax is imported only where it is used.
"""

import contextlib
import dataclasses
import errno
import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict

from deepseek_jax import recipes
from deepseek_jax.errors import Fault, at, shortened, suggest
from deepseek_jax.files import absolute
from deepseek_jax.settings import build
from launch import distributed
from launch.backend import check_xla_flags, no_backend
from launch.caches import keep_programs
from launch.config_file import load_config, split_arguments
from launch.signals import Stop, interruptible
from launch.waiting import USER_ERROR, waiting
from launch.workdir import check_starts, claim_workdir, default_workdir

# So --help of a program lists the flags that this module defines for it
flags.disclaim_key_flags()
ROOT = Path(__file__).resolve().parents[1]
# JAX itself would end the process, with the traces of its service
PEERS_SECONDS = 300.0
PEERS_REMEDY = "start as many processes as the launcher says, or give --distributed=no"
# What a file system may refuse to any of our reads and writes
REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space there or raise the quota",
    errno.EROFS: "make that file system writable, or give another place",
    errno.EACCES: "give this account the right to read and write there, or another place",
}
# In the address of an object, as the packages that read gs:// show it
BUCKETS = "/storage/v1/b/"
BUCKET_REMEDY = "correct the address gs://, or give this account the right to use what is there"

# The flags of what looks on at a run, which a sweep passes on to its runs
OBSERVERS = "wandb", "watchdog", "watchdog_requeue"


def run_program(main, parse):
    """What the last line of a program calls: main(parse(argv)), as absl's app.run does, ended by Ctrl-C."""
    with interruptible():
        with one_message():
            check_xla_flags(os.environ.get("XLA_FLAGS", ""))
        app.run(main, flags_parser=parse)


def define_config(required=True):
    """Define --config. parse_config reads it, and the --config.FIELD=VALUE that go with it."""
    meaning = "The experiment: FILE.py or FILE.py:ARG; --config.FIELD=VALUE sets a field of it."
    flags.DEFINE_string("config", None, meaning, required=required)


def define_run(default: str):
    """Define the flags of a program that starts a recipe. default: of --workdir, for its help."""
    flags.DEFINE_string("workdir", None, f"The folder of the run; default {default}.")
    distributed.define_flags()
    meaning = "Test devices, versions, collectives, the work directory and the data; run nothing."
    flags.DEFINE_bool("check", False, meaning)
    meaning = "End at a damaged checkpoint; the default is to name it, and to use an earlier one."
    flags.DEFINE_bool("strict", False, meaning)
    meaning = "STEP:COUNT. Trace COUNT steps from STEP on, of each phase that has them, in WORKDIR/profile."
    flags.DEFINE_string("profile", None, meaning)
    define_observers()


def define_observers():
    """Define the flags of OBSERVERS."""
    meaning = (
        "PROJECT or ENTITY/PROJECT of Weights & Biases. It gets the metrics as TensorBoard does."
    )
    flags.DEFINE_string("wandb", None, meaning)
    meaning = "Print all stacks when a step takes FACTOR medians and ten minutes; 0 for never."
    flags.DEFINE_float("watchdog", 20.0, meaning)
    meaning = "Such a step ends the process with 75, and the scheduler starts it again."
    flags.DEFINE_bool("watchdog_requeue", False, meaning)


def parse_flags(argv):
    """Parse a command line with absl: -> argv without flags. A mistake is one message and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        fail(_plainly(error))
    if rest[1:]:
        form = "--config.FIELD=VALUE" if "config" in flags.FLAGS else "--FLAG=VALUE"
        fail(f"{shlex.join(rest[1:])} is not a flag; use {form}")
    if flags.FLAGS["verbosity"].using_default_value:
        # At INFO libraries report every file they touch
        flags.FLAGS.verbosity = logging.ERROR
    return rest


def parse_config(argv):
    """Parse the command line of a program with --config: -> its ConfigDict; None without the flag."""
    try:
        overrides, others = split_arguments(flags.FLAGS.read_flags_from_files(argv, False))
        parse_flags(others)
        if flags.FLAGS.config is None:
            if overrides:
                raise ValueError(
                    f"--config.{overrides[0][0]} sets a field of --config, which is missing"
                )
            return None
        return load_config(flags.FLAGS.config, overrides)
    except (ValueError, flags.Error) as error:
        fail(_plainly(error))


# How absl says what a flag does not take, and how we do
PLAINLY = (
    (r"flag (--\S+?)=(.*): invalid literal for int\(\).*", r"\1=\2 must be a whole number"),
    (r"flag (--\S+?)=(.*): could not convert string to float.*", r"\1=\2 must be a number"),
    (
        r"ERROR:: Unable to open flagfile: .*: (.*)",
        r"--flagfile=\1 cannot be read; name a file of flags, one a line",
    ),
)


def _plainly(error):
    message = str(error)
    for theirs, ours in PLAINLY:
        message = re.sub(f"^{theirs}$", ours, message)
    return message


def fail(message, status: int = USER_ERROR):
    """Print a mistake that the user can correct, or a run's fault, once for all processes, and exit."""
    distributed.print_once(
        shortened(str(message)), lambda text: print(f"error: {text}", file=sys.stderr, flush=True)
    )
    sys.exit(status)


@contextlib.contextmanager
def one_message(shown=str):
    """Turn a ValueError that this project raises in the body into one message and exit status 2, and an
    errors.Fault into one message and its own status.

    shown(error) is the message. An error that a library raises keeps its traceback, for no user can correct
    it, unless a full or a closed disk or a missing device caused it: see refused and no_backend.
    """
    try:
        yield
    except Fault as fault:
        logging.debug("raised here:", exc_info=fault)
        fail(shown(fault), fault.status)
    except Exception as error:
        # --verbosity=1 shows where it was raised
        logging.debug("raised here:", exc_info=error)
        if isinstance(error, ValueError) and _is_ours(error):
            fail(shown(error))
        cause = refused(error) or no_backend(error)
        if cause is None:
            raise
        # Not `fail`: disk and device may be of this process alone, and process 0 knows nothing of it
        print(f"error: {cause}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def _is_ours(error):
    """Whether a line of this project raised the error."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    source = Path(last.f_code.co_filename).resolve()
    return any(source.is_relative_to(ROOT / part) for part in ("configs", "deepseek_jax", "launch"))


def refused(error: BaseException):
    """A message with the remedy where a file system or bucket is full, closed to us or not there, else None.

    Libraries raise errors of their own for it, with the system's words in them or its error before them.
    """
    seen = error
    while seen is not None:
        if BUCKETS in str(seen) or type(seen).__module__.startswith("gcsfs"):
            cause = " ".join(str(seen).split())
            return f"{cause[:400]}; {BUCKET_REMEDY}"
        for number, remedy in REMEDIES.items():
            if getattr(seen, "errno", None) == number or os.strerror(number) in str(seen):
                cause = " ".join(str(seen).split())
                return f"{cause[:400]}; {remedy}, and start the same command again: it resumes"
        seen = seen.__cause__ or seen.__context__
    return None


def find_recipe(name: str):
    """The module deepseek_jax/recipes/NAME.py or NAME/run.py, which has JOB and SETTINGS.

    Raises ValueError for an unknown name.
    """
    folders = [Path(folder) for folder in recipes.__path__]
    # Files are read, not imported: one recipe does not need the dependencies of another
    files = [file for folder in folders for file in folder.glob("*.py") if _has_job(file)]
    modules = {file.stem: file.stem for file in files}
    for folder in folders:
        modules |= {f.parent.name: f"{f.parent.name}.run" for f in folder.glob("*/run.py")}
    if name not in modules:
        raise ValueError(
            f"config.recipe={name!r} is not a recipe; {suggest(name, sorted(modules))}"
        )
    return importlib.import_module(f"{recipes.__name__}.{modules[name]}")


def _has_job(file):
    return "\nJOB = " in file.read_text()


def given_workdir(name: str, seed: int | None):
    """--workdir, a folder or gs://..., or the default folder of a run: see workdir.default_workdir."""
    with one_message(), at("--workdir"):
        return absolute(flags.FLAGS.workdir or default_workdir(name, seed))


def start(config: ConfigDict, workdir: Path, shown=str):
    """Run config's recipe in workdir on its mesh. A user's mistake is one message, shown(error)."""
    with one_message(shown):
        prepare_process(config.get("xla_flags", ""))
        observers = _observers(config, workdir)
        check_starts(config, workdir)
        with waiting("the other processes of this run", PEERS_SECONDS, PEERS_REMEDY):
            several = distributed.join_peers()
        if observers.wandb is not None:
            observers.wandb.log_in()
    keep_programs(workdir.parent if several else None)
    if flags.FLAGS.check:
        from launch.check import check

        with one_message(shown):
            check(*_opened(config), config, workdir)
        return
    run_recipe(config, workdir, shown, observers=observers, strict=flags.FLAGS.strict)


class Observers(NamedTuple):
    """What looks on at a run, None for nothing: a Profile, a Watchdog and a WandbRun of training."""

    profile: Any = None
    watchdog: Any = None
    wandb: Any = None


def _observers(config, workdir):
    """The Observers that the flags ask for. Raises ValueError for a wrong flag."""
    from deepseek_jax.training.profile import Profile
    from deepseek_jax.training.run import STOPPED
    from deepseek_jax.training.wandb_board import WandbRun
    from deepseek_jax.training.watchdog import Watchdog

    values = flags.FLAGS
    profile = watchdog = wandb = None
    if values.profile is not None:
        profile = Profile.of(values.profile, workdir / "profile")
    if values.watchdog:
        with at("--watchdog", "factor"):
            status = STOPPED if values.watchdog_requeue else None
            watchdog = Watchdog(values.watchdog, status)
    elif values.watchdog_requeue:
        raise ValueError("--watchdog_requeue needs a watchdog; leave out --watchdog=0, or itself")
    if values.wandb is not None:
        if not all(parts := values.wandb.split("/")) or len(parts) > 2:
            raise ValueError(f"--wandb={values.wandb} is not PROJECT or ENTITY/PROJECT")
        wandb = WandbRun(values.wandb, workdir, config.to_dict())
    return Observers(profile, watchdog, wandb)


def prepare_process(xla_flags: str):
    """Set what JAX and malloc read when this process starts to use them: call it before anything asks for
    devices. xla_flags are put before XLA_FLAGS of the environment, which win. Raises ValueError for a flag
    that XLA does not know.
    """
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{xla_flags} {given}".strip()
    check_xla_flags(os.environ["XLA_FLAGS"])
    from deepseek_jax.parallel.host_memory import keep_freed_memory, return_compilers_memory
    from deepseek_jax.parallel.host_threads import give_devices_threads

    give_devices_threads()
    # It has to come before any other thread runs
    keep_freed_memory()
    return_compilers_memory()


def run_recipe(
    config: ConfigDict,
    workdir: Path,
    shown=str,
    listen=Stop,
    *,
    observers: Observers | None = None,
    strict: bool = False,
    console_seconds: float | None = None,
    after_step: Callable[[], bool] | None = None,
):
    """The part of `start` that a process may repeat. listen() -> whether it was asked to stop, as Stop says,
    after a step or within a measurement. after_step: of steps, in its place. strict: of the recipe's Run.
    console_seconds: of MetricsWriter.
    """
    import jax

    from deepseek_jax.recipes import driver
    from deepseek_jax.training.metrics import MetricsWriter
    from deepseek_jax.training.run import Run, stoppable

    observers = observers or Observers()
    with one_message(shown):
        # Before the work directory is claimed: a misspelt field is named even if that is another config's
        recipe, settings, mesh = _opened(config)
        redoes = recipe.JOB.redoes_what_changed
        with claim_workdir(workdir, config, may_change=redoes), jax.set_mesh(mesh):
            if jax.process_index() == 0:
                devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
                print(f"{config.recipe} on {devices}; work directory {workdir}", flush=True)
            writer = MetricsWriter(workdir, console_seconds, observers.wandb)
            # Closed also where the run raises: in a bucket its last lines wait to be written
            asked = listen()
            with contextlib.closing(writer), stoppable(asked):
                run = Run(
                    mesh,
                    workdir,
                    writer,
                    after_step or asked,
                    profile=observers.profile,
                    watchdog=observers.watchdog,
                    strict=strict,
                )
                try:
                    driver.run(recipe.JOB(settings, mesh, run))
                finally:
                    if run.profile is not None:
                        run.profile.report()


def _opened(config):
    """(the recipe's module, its settings, the mesh) of a config."""
    from deepseek_jax.parallel.mesh import MeshSettings, make_mesh

    recipe = find_recipe(config.get("recipe"))
    settings = build(recipe.SETTINGS, config, "config")
    axes = build(MeshSettings, config.get("mesh", {}), "config.mesh")
    with at("config.mesh"):
        mesh = make_mesh(**dataclasses.asdict(axes))
    return recipe, settings, mesh
