"""Code that all programs share: flags, error messages, signals, and starting a recipe.

JAX is imported inside functions: a mistake in a flag does not wait for that import, and a plan sets
its environment before it.

Tests: tests/launch/test_train.py, tests/launch/test_early.py.
"""

import contextlib
import errno
import os
import re
import shlex
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from deepseek_jax.errors import Fault, at, shortened
from deepseek_jax.files import absolute
from deepseek_jax.programs import PROGRAMS, command, is_mistake
from deepseek_jax.progress import hush, speaking
from deepseek_jax.recipes.environment import check_xla_flags, prepare_process
from deepseek_jax.recipes.experiment import Observers, check_recipe, opened_by_all, run_recipe
from deepseek_jax.recipes.workdir import check_starts
from launch import distributed
from launch.arguments import instead, named, profiled_steps
from launch.backend import no_backend
from launch.caches import keep_programs
from launch.config_file import load_config, split_arguments
from launch.signals import interruptible
from launch.waiting import USER_ERROR, waiting

# With this, --help of a program lists the flags that this module defines for it
flags.disclaim_key_flags()
# Limit of the wait for other processes. JAX waits longer, and then ends the process with traces
PEERS_SECONDS = 300.0
PEERS_REMEDY = "start as many processes as the launcher says, or give --distributed=no"
# {an error of the file system, which any read or write may raise: what to do}
REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space there or raise the quota",
    errno.EROFS: "make that file system writable, or give another place",
    errno.EACCES: "give this account the right to read and write there, or another place",
}
# The packages that read gs:// have this in the addresses of objects
BUCKETS = "/storage/v1/b/"
BUCKET_REMEDY = "correct the address gs://, or give this account the right to use what is there"

# Flags of a run's observers. A sweep passes them on to its runs
OBSERVERS = "wandb", "watchdog", "watchdog_requeue"


def run_program(main, parse):
    """Run a program: main(parse(argv)), as absl's app.run calls them.

    The last line of a program calls this. Ctrl-C ends the program.

    Args:
        main: Called with the result of `parse`.
        parse: Called with the command line: parse_flags, parse_config or a program's function.
    """
    hush(not distributed.seems_first())
    with interruptible(), speaking():
        with one_message():
            check_xla_flags(os.environ.get("XLA_FLAGS", ""))
        app.run(main, flags_parser=parse)


def define_config(required=True):
    """Define --config. parse_config reads it, and the flags --config.FIELD=VALUE."""
    meaning = (
        "The experiment: FILE or FILE:ARG, where FILE is a Python file or the name of a shipped one, as "
        "grpo_small; an argument without a flag is this one. --config.FIELD=VALUE sets a field of it."
    )
    flags.DEFINE_string("config", None, meaning, required=required)


def define_run(default: str):
    """Define the flags of a program that starts a recipe.

    Args:
        default: The default of --workdir, for its help text.
    """
    flags.DEFINE_string("workdir", None, f"The folder of the run; default {default}.")
    distributed.define_flags()
    meaning = "Test devices, versions, collectives, the work directory and the data; run nothing."
    flags.DEFINE_bool("check", False, meaning)
    define_rehearse()
    meaning = "End at a damaged checkpoint; the default is to name it, and to use an earlier one."
    flags.DEFINE_bool("strict", False, meaning)
    meaning = "Run the stages anew whose config, data or code has changed; the others stay."
    flags.DEFINE_bool("redo", False, meaning)
    meaning = "STEP:COUNT. Trace COUNT steps from STEP on, of each phase that has them, in WORKDIR/profile."
    flags.DEFINE_string("profile", None, meaning)
    define_observers()


def define_rehearse():
    """Define --rehearse."""
    meaning = (
        "v5e, v5p, v6e, tpu7x or gpu: compute on CPU devices with the forms, sizes and rounding of that "
        "machine, to find out what fails there. Its numbers are no results."
    )
    flags.DEFINE_string("rehearse", None, meaning)


def rehearse():
    """Compute as the machine that --rehearse names, if it names one.

    Raises:
        ValueError: The machine is unknown.
    """
    if flags.FLAGS.rehearse is not None:
        from deepseek_jax.ops import rehearsal

        with at("--rehearse", "machine"):
            rehearsal.rehearse(flags.FLAGS.rehearse)


def define_observers():
    """Define the flags of a run's observers: OBSERVERS."""
    meaning = (
        "PROJECT or ENTITY/PROJECT of Weights & Biases. It gets the metrics as TensorBoard does."
    )
    flags.DEFINE_string("wandb", None, meaning)
    meaning = "Print all stacks when a step takes FACTOR medians and ten minutes; 0 for never."
    flags.DEFINE_float("watchdog", 20.0, meaning)
    meaning = "Such a step ends the process with 75, and the scheduler starts it again."
    flags.DEFINE_bool("watchdog_requeue", False, meaning)


def parse_flags(argv, *positional: str):
    """Parse a command line with absl. A mistake is one message and exit status 2.

    Args:
        positional: The names of the flags that arguments without a flag set, in this order.

    Returns:
        argv without the flags.
    """
    argv = named(argv, positional)
    try:
        remaining_argv = flags.FLAGS(argv)
    except flags.Error as error:
        fail(instead(error, argv) or _plainly(error))
    if remaining_argv[1:]:
        form = "--config.FIELD=VALUE" if "config" in flags.FLAGS else "--FLAG=VALUE"
        fail(f"{shlex.join(remaining_argv[1:])} is not a flag; use {form}")
    if flags.FLAGS["verbosity"].using_default_value:
        # At level INFO, libraries report every file that they touch
        flags.FLAGS.verbosity = logging.ERROR
    return remaining_argv


def parse_config(argv, *positional: str):
    """Parse the command line of a program with --config.

    A mistake is one message and exit status 2.

    Args:
        positional: The names of the flags that arguments without a flag set after --config.

    Returns:
        The ConfigDict; None without --config.
    """
    try:
        overrides, other_arguments = split_arguments(flags.FLAGS.read_flags_from_files(argv, False))
        parse_flags(other_arguments, "config", *positional)
        if flags.FLAGS.config is None:
            if overrides:
                raise ValueError(
                    f"--config.{overrides[0][0]} sets a field of --config, which is missing"
                )
            return None
        return load_config(flags.FLAGS.config, overrides)
    except (ValueError, flags.Error) as error:
        fail(_plainly(error))


# (a pattern of absl's message about a flag, our message)
PLAINLY = (
    (
        r"flag --config=None: .*",
        "--config is missing; give an experiment, its file or the name of a shipped one, as grpo_small",
    ),
    (r"flag (--\S+?)=None: .*", r"\1 is missing (see --help)"),
    (r"flags .*: Flag (--\S+) must have a value .*", r"\1 is missing (see --help)"),
    (r"flag (--\S+?)=(.*): invalid literal for int\(\).*", r"\1=\2 must be a whole number"),
    (r"flag (--\S+?)=(.*): could not convert string to float.*", r"\1=\2 must be a number"),
    (
        r"ERROR:: Unable to open flagfile: .*: (.*)",
        r"--flagfile=\1 cannot be read; name a file of flags, one a line",
    ),
)


def _plainly(error):
    # absl has a line for each flag that is missing
    lines = str(error).splitlines()
    for pattern, replacement in PLAINLY:
        lines = [re.sub(f"^{pattern}$", replacement, line) for line in lines]
    return "; ".join(lines)


def fail(message, status: int = USER_ERROR):
    """Print a message once for all processes, and exit.

    The message names a mistake that the user can correct, or a fault of the run.
    """
    distributed.print_once(
        shortened(str(message)), lambda text: print(f"error: {text}", file=sys.stderr, flush=True)
    )
    sys.exit(status)


@contextlib.contextmanager
def one_message(message_of=str):
    """Turn a user's mistake or a run's fault in the block into one message and an exit status.

    A ValueError that this project raises ends the program with status 2, and an errors.Fault with
    its own status. An error that a library raises keeps its traceback, because as a rule no user
    can correct it. But if its cause is a full or closed disk, or a missing device, it is one
    message and status 2 too: see refused and no_backend.

    Args:
        message_of: message_of(error) returns the message.
    """
    try:
        yield
    except Fault as fault:
        logging.debug("raised here:", exc_info=fault)
        fail(message_of(fault), fault.status)
    except Exception as error:
        # Visible with --verbosity=1
        logging.debug("raised here:", exc_info=error)
        if is_mistake(error):
            fail(message_of(error))
        cause = refused(error) or no_backend(error)
        if cause is None:
            raise
        # Not `fail`: perhaps only this process has a bad disk or device, and process 0 would print
        # nothing
        print(f"error: {cause}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def refused(error: BaseException):
    """Return a message with the remedy if a disk or bucket refused a read or write; else None.

    It may be full, closed to us or not there. Libraries raise their own errors for this. The
    system's words are in such an error's message, or the system's error is its cause.
    """
    failure: BaseException | None = error
    while failure is not None:
        if BUCKETS in str(failure) or type(failure).__module__.startswith("gcsfs"):
            cause = " ".join(str(failure).split())
            return f"{cause[:400]}; {BUCKET_REMEDY}"
        for number, remedy in REMEDIES.items():
            if getattr(failure, "errno", None) == number or os.strerror(number) in str(failure):
                cause = " ".join(str(failure).split())
                return f"{cause[:400]}; {remedy}, and start the same command again: it resumes"
        failure = failure.__cause__ or failure.__context__
    return None


def default_workdir(config_path: str, seed: int | None) -> Path:
    """Return the default folder of a run: runs/<config file>[_<arg>][_seed<N>].

    _seed<N> is not there if N is 0 or None, or if the arg names the seed.

    Args:
        config_path: The value of --config, as in "configs/grpo_small.py:runlocal".
        seed: N.
    """
    path, _, arg = config_path.partition(":")
    name = Path(path).stem + (f"_{arg}" if arg else "")
    if seed and "seed=" not in arg:
        name += f"_seed{seed}"
    return Path("runs") / re.sub(r"[^\w=.,+-]", "_", name)


def given_workdir(name: str, seed: int | None):
    """Return --workdir, a folder or gs://..., or the default folder of a run.

    See default_workdir for the default and the arguments. With --rehearse, the default also ends in
    _as_<machine>.
    """
    with one_message(), at("--workdir"):
        if flags.FLAGS.workdir:
            return absolute(flags.FLAGS.workdir)
        folder, machine = default_workdir(name, seed), flags.FLAGS["rehearse"].value
        return absolute(
            folder if machine is None else folder.with_name(f"{folder.name}_as_{machine}")
        )


def start(config: ConfigDict, workdir: Path, message_of=str):
    """Run config's recipe in workdir on its mesh, or check it if --check is given.

    A user's mistake is one message and exit status 2.

    Args:
        message_of: message_of(error) returns the message.
    """
    with one_message(message_of):
        # What needs no JAX comes before its import
        check_recipe(config.get("recipe"))
        _check_observers()
        check_starts(config, workdir)
        prepare_process(config.get("xla_flags", ""))
        observers = _observers(config, workdir)
        with waiting("the other processes of this run", PEERS_SECONDS, PEERS_REMEDY):
            has_peers = distributed.join_peers()
        if observers.wandb is not None:
            observers.wandb.log_in()
    keep_programs(workdir.parent if has_peers else None)
    with one_message(message_of):
        rehearse()
    if flags.FLAGS.check:
        from launch.check import check

        with one_message(message_of):
            check(opened_by_all(config, workdir), config, workdir, flags.FLAGS.redo)
        return
    with one_message(message_of):
        run_recipe(
            config,
            workdir,
            observers=observers,
            strict=flags.FLAGS.strict,
            redo=flags.FLAGS.redo,
        )


def _check_observers():
    """Raise ValueError if a flag of an observer is wrong."""
    flag_values = flags.FLAGS
    if flag_values.profile is not None:
        profiled_steps(flag_values.profile)
    if flag_values.watchdog_requeue and not flag_values.watchdog:
        raise ValueError("--watchdog_requeue needs a watchdog; leave out --watchdog=0, or itself")
    names = [] if flag_values.wandb is None else flag_values.wandb.split("/")
    if not all(names) or len(names) > 2:
        raise ValueError(f"--wandb={flag_values.wandb} is not PROJECT or ENTITY/PROJECT")


def _started_by():
    """Return the experiment and the command of this process, as run.json has them."""
    fields = {}
    if "config" in flags.FLAGS:
        fields["experiment"] = flags.FLAGS.config
    name = Path(sys.argv[0]).stem
    # Else another program calls this one's main
    if name in PROGRAMS:
        fields["command"] = f"{command(name)} {shlex.join(sys.argv[1:])}"
    return fields


def _observers(config, workdir):
    """Return the Observers that the flags ask for.

    Raises:
        ValueError: A flag is wrong in a way that needs JAX.
    """
    from deepseek_jax.training.profile import Profile
    from deepseek_jax.training.run import STOPPED
    from deepseek_jax.training.wandb_board import WandbRun
    from deepseek_jax.training.watchdog import Watchdog

    flag_values = flags.FLAGS
    profile = watchdog = wandb = None
    if flag_values.profile is not None:
        profile = Profile(*profiled_steps(flag_values.profile), workdir / "profile")
    if flag_values.watchdog:
        with at("--watchdog", "factor"):
            status = STOPPED if flag_values.watchdog_requeue else None
            watchdog = Watchdog(flag_values.watchdog, status)
    if flag_values.wandb is not None:
        wandb = WandbRun(flag_values.wandb, workdir, config.to_dict())
    return Observers(profile, watchdog, wandb, _started_by())
