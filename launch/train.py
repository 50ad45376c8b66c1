"""Run one experiment: flags -> config -> mesh -> recipe.

    python launch/train.py --config=configs/grpo_small.py[:ARG] [--config.FIELD=VALUE ...]
        [--workdir=FOLDER] [--distributed]

Run it again to go on from the last checkpoint, or to hear that the run is complete. SIGTERM or
Ctrl-C saves after the step at hand and exits with 75 (start me again); a second one leaves at once.
A mistake in the config or the work directory is one message and exit status 2.

The worker processes of a reward import this file again: what needs jax is imported where it is used.
"""

import dataclasses
import importlib
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs uninstalled

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from deepseek_jax import recipes, settings
from deepseek_jax.errors import at

ROOT = Path(__file__).resolve().parents[1]
USER_ERROR = 2


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """config.mesh: the size of each mesh axis, one of them -1 for what is left of the devices."""

    slices: int = 1
    pipeline: int = 1
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1


class Stop:
    """Asked after every step: has a signal told this process to save and leave?"""

    def __init__(self):
        self.asked = False
        self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self):
        return self.asked

    def _ask(self, number, frame):
        self.asked = True
        for each, handler in self.previous.items():
            signal.signal(each, handler)  # a second signal acts as if this class were not here
        told = f"\n{signal.Signals(number).name}: finishing the step, then saving; again to leave at once\n"
        os.write(1, told.encode())  # print raises where the signal came amid another print


def find_recipe(name):
    """The `run` of deepseek_jax/recipes/<name>.py or <name>/run.py. Raises ValueError where there is none."""
    folders = [Path(folder) for folder in recipes.__path__]
    # Read, not imported: another recipe's dependencies are not needed to say that it is there
    modules = {
        file.stem: file.stem for folder in folders for file in folder.glob("*.py") if _runs(file)
    }
    modules |= {
        file.parent.name: f"{file.parent.name}.run" for f in folders for file in f.glob("*/run.py")
    }
    if name not in modules:
        raise ValueError(
            f"config.recipe={name!r} is not a recipe; {settings.suggest(name, sorted(modules))}"
        )
    return importlib.import_module(f"{recipes.__name__}.{modules[name]}").run


def _runs(file):
    return "\ndef run(" in file.read_text()


def define_config():
    """--config, whose fields can be overridden, those that the file leaves at a recipe's default too."""
    # Unknown ones are for the recipe to find: settings.build knows every block and its fields
    unlocked = dict(lock_config=False, accept_new_attributes=True)
    told = "The experiment: FILE.py or FILE.py:ARG."
    config_flags.DEFINE_config_file("config", None, told, **unlocked)


def define_flags():
    define_config()
    flags.DEFINE_string("workdir", None, "Where the run is kept; default runs/FILE_ARG_seedN.")
    flags.DEFINE_bool("distributed", False, "Run as one of several processes (Slurm, GKE, TPU).")
    flags.mark_flag_as_required("config")


def parse_flags(argv):
    """absl's parser, with a mistake of the command line as one message and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        config = flags.FLAGS.config
        getattr(config, "recipe", None)  # a file that would not load raises when first read
        if not isinstance(config, ConfigDict):
            raise flags.Error(f"get_config returned {config!r}; it must return a ConfigDict")
        if rest[1:]:
            raise flags.Error(f"{shlex.join(rest[1:])} is no flag; use --config.FIELD=VALUE")
    except (flags.Error, LookupError, AttributeError, OSError) as error:
        if isinstance(error, (LookupError, AttributeError)) and "get_config" in _functions(error):
            raise  # a slip in the config file, for its author
        fail(_flag_message(error, argv))
    quiet_libraries()
    return rest


def quiet_libraries():
    """Unless --verbosity says otherwise: the libraries tell of every file and of themselves."""
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.ERROR


def _functions(error):
    return [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]


def _flag_message(error, argv):
    cause = error
    while cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(error, OSError):
        return f"--config: {str(cause).splitlines()[-1].strip()}"
    if isinstance(error, flags.Error):
        # get_config's ValueError comes wrapped, its traceback in the message: take its own words
        own = isinstance(cause, ValueError) and "Error whilst parsing config" in str(error)
        return str(cause if own else error)
    return _unknown_block(argv)


def _unknown_block(argv):
    """What is wrong with the first --config.BLOCK.FIELD whose block the config does not have."""
    known = flags.FlagValues()
    flags.DEFINE_string("config", None, "", flag_values=known)
    known(argv, known_only=True)
    config = flags.FLAGS["config"].parser.parse(known.config)
    for name in (arg.lstrip("-").removeprefix("no").split("=")[0] for arg in argv):
        block, path = config, "config"
        for part in name.split(".")[1:] if name.startswith("config.") else ():
            fields = block if isinstance(block, ConfigDict) else {}
            if part not in fields:
                whole = f"give it whole, as --{path}.{part}=\"{{'FIELD': VALUE}}\""
                return f"{path}.{part} is no block of the file; {whole}; {settings.suggest(part, fields)}"
            block, path = block[part], f"{path}.{part}"
    raise AssertionError("config_flags refused an override of a block that is there")


def fail(message):
    """Say what the user can mend, and leave."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(USER_ERROR)


def raised_here(error):
    """Whether this project raised it: a ValueError out of a library deserves its traceback."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    source = Path(last.f_code.co_filename).resolve()
    return any(source.is_relative_to(ROOT / part) for part in ("configs", "deepseek_jax", "launch"))


def _join_peers():
    import jax

    try:
        jax.distributed.initialize()
    except ValueError as error:  # JAX recognises none of the clusters that it knows
        fail(f"--distributed: {error} Slurm, GKE and TPU pods are recognised; else leave it out")


def main(argv):
    from launch.workdir import default_workdir

    del argv  # parse_flags has read it
    config = flags.FLAGS.config
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(flags.FLAGS.workdir or default_workdir(path, config.get("seed"))).resolve()
    start(config, workdir, distributed=flags.FLAGS.distributed)


def start(config, workdir, *, distributed, shown=str):
    """Run config's recipe in workdir on its mesh. A user's mistake is one message, shown(error).

    config.xla_flags go before those of the environment, which win, and are read when devices are first
    asked for.
    """
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{config.get('xla_flags', '')} {given}".strip()
    import jax

    from deepseek_jax.parallel.host_memory import keep_freed_memory, return_compilers_memory
    from deepseek_jax.parallel.mesh import make_mesh
    from launch.workdir import claim_workdir

    keep_freed_memory()
    return_compilers_memory()
    if distributed:
        _join_peers()
    try:
        run = find_recipe(config.get("recipe"))
        axes = settings.build(MeshSettings, config.get("mesh", {}), "config.mesh")
        with at("config.mesh"):
            mesh = make_mesh(**dataclasses.asdict(axes))
        redoes = getattr(sys.modules[run.__module__], "REDOES_WHAT_CHANGED", False)
        with claim_workdir(workdir, config, may_change=redoes), jax.set_mesh(mesh):
            if jax.process_index() == 0:
                kind = mesh.devices.flat[0].device_kind
                print(
                    f"{config.recipe} on {mesh.size} x {kind}; work directory {workdir}", flush=True
                )
            run(config, mesh, workdir, Stop())
    except ValueError as error:
        if not raised_here(error):
            raise
        logging.debug("raised here:", exc_info=error)  # --verbosity=1 shows it
        fail(shown(error))


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
