"""Run one experiment several times, with different overrides, and report on all runs together.

    python launch/sweep.py --config=configs/r1_small.py[:ARG] --sweep=configs/sweeps/seeds.py
        [--engine=local|slurm|gke] [--max_jobs=N] [--topology=v5e:4x4] [--workdir=FOLDER] [--watch]
        [--metric=SCORE] [--rerun_failed] [--cancel] [--dry_run] [--config.FIELD=VALUE ...]
        [--wandb=PROJECT] [--watchdog=FACTOR] [--watchdog_requeue]

--sweep is a file with sweep(config) -> a list of {"FIELD": VALUE}, one for each run; FIELD is a
dotted field of the config. Each run is a separate launch/train.py, with its own folder below
--workdir; its output goes to NAME.log next to that folder. --max_jobs is how many run at once: by
default 1 on this machine, and elsewhere all. With --topology the plan names the runs that cannot
run there and leaves them out, and it says the chip-hours of the others. --dry_run prints what would
be started (commands, the script for sbatch, or commands of xpk), and reads the data. For that,
neither Slurm nor xpk has to be installed. The flags in the last line above are flags of
launch/train.py, for every run.

Run the command again to resume. It takes over runs that live. It does not run a complete run again,
unless the run's config has changed. --rerun_failed starts only runs that failed. --cancel asks all
runs to save and end. A run that is preempted is queued again, and resumes. If a run fails, it is
named, the others continue, and the exit status is 1. SIGTERM or Ctrl-C is passed on to runs of this
machine, and the exit status is 75 (start me again); runs of Slurm and GKE go on. A mistake is one
message and exit status 2.

The table and the plot show one score of each complete run on held-out data, with its 95% interval.
With --watch the table is printed again whenever it changes. The default is the first score of the
last measurement. --metric=SCORE chooses another score, --metric=MEASUREMENT/SCORE another
measurement too (before/accuracy is in before/scores.json), and --metric=logged/PHASE/NAME the last
number in metrics.jsonl instead.
"""

import sys
from pathlib import Path

# A checkout runs without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deepseek_jax.installed import check_installed

check_installed()

from absl import flags

from deepseek_jax.errors import at
from deepseek_jax.files import cache_folder, expanded, is_remote
from deepseek_jax.programs import given_file
from deepseek_jax.progress import importing_jax, waiting_for
from deepseek_jax.recipes.experiment import find_recipe, results_of
from deepseek_jax.recipes.experiment_file import as_config, call, load_function
from deepseek_jax.recipes.stop import Stop
from launch import common
from launch.config_file import split_arguments
from launch.engines import STOPPED, gke, slurm
from launch.engines.local import Local
from launch.planning.topology import EXAMPLES
from launch.sweeps.folder import Folder
from launch.sweeps.follow import Sweep, cancel
from launch.sweeps.prune import able_runs
from launch.sweeps.runs import check_data, file_name, sweep_runs, train_arguments
from launch.sweeps.show import Show

FAILED = 1
ENGINES = ("local", "slurm", "gke")


def define_flags():
    """Define the program's flags."""
    common.define_config()
    meaning = (
        "FILE.py with sweep(config) -> a list of overrides, or a shipped one's name, as seeds; "
        "a second argument without a flag is this one."
    )
    flags.DEFINE_string("sweep", None, meaning, required=True)
    flags.DEFINE_string("workdir", None, "The folder of the runs; default runs/CONFIG_SWEEP.")
    flags.DEFINE_enum("engine", "local", ENGINES, "Where the runs are executed.")
    flags.DEFINE_integer("max_jobs", None, "Runs at a time; default 1 locally.", lower_bound=1)
    flags.DEFINE_string("topology", None, f"The devices to plan each run for, as in {EXAMPLES}.")
    flags.DEFINE_bool("watch", False, "Print the table again whenever it changes.")
    flags.DEFINE_string("metric", None, "The score of the table; default a headline.")
    flags.DEFINE_bool("rerun_failed", False, "Start only runs that failed.")
    flags.DEFINE_bool("cancel", False, "Ask the runs that live to save and end.")
    flags.DEFINE_bool("dry_run", False, "Print what would be started, and read the data.")
    common.define_observers()
    slurm.define_flags()
    gke.define_flags()


def main(parsed):
    """Start and follow the sweep that the flags describe; or cancel it, or print what would start.

    Args:
        parsed: The result of parse_flags.
    """
    config, shared = parsed
    flag_values = flags.FLAGS
    with common.one_message():
        folder = sweeps_folder()
        folder.check()
        # Before the recipe, which imports jax: a missing engine or file is reported at once
        engine = make_engine(folder.path)
        sweep_file = given_file(flag_values.sweep, "--sweep")
        sweep_function = load_function(sweep_file, "sweep", "--sweep")
        overrides = call(lambda: sweep_function(config), f"--sweep={sweep_file}", sweep_file)
        with importing_jax() as wait:
            wait.remind()
            recipe = find_recipe(config.get("recipe"))
        runs = sweep_runs(config, overrides, recipe.SETTINGS)
    with common.one_message():
        if flag_values.cancel:
            with Stop() as should_stop:
                stopped_names = cancel(folder, engine, should_stop)
            print(
                f"asked to save and end: {', '.join(stopped_names) or 'no run is live'}", flush=True
            )
            return
        runs_that_fit = able_runs(folder, runs, flag_values.topology, cache_folder("plans"))
        if flag_values.dry_run:
            print(
                engine.describe([job_of(folder, run, shared) for run in runs_that_fit]), flush=True
            )
            with waiting_for("reading the data of the runs"):
                check_data(runs_that_fit)
            return
        pruned_names = {run.name for run in runs if run not in runs_that_fit}
        show = Show(folder, runs, lambda run: scores(folder, run), flag_values.metric, pruned_names)
        sweep = Sweep(
            folder, engine, lambda run: job_of(folder, run, shared), show, flag_values.watch
        )
        # Only in this block are there runs to pass a signal on to
        with Stop() as should_stop:
            statuses = sweep.run(
                runs_that_fit, flag_values.max_jobs, flag_values.rerun_failed, should_stop
            )
    if should_stop() or folder.cancelled.exists():
        sys.exit(STOPPED)
    report(recipe, folder, runs_that_fit, statuses, show)


def sweeps_folder():
    """Return the Folder that the flags name.

    Raises:
        ValueError: --workdir is in a bucket, or a name of a file is wrong.
    """
    flag_values = flags.FLAGS
    file, colon, arg = flag_values.config.partition(":")
    name = f"{Path(file).stem}_{Path(flag_values.sweep).stem}"
    identity = {
        "config": f"{Path(given_file(file, '--config')).resolve()}{colon}{arg}",
        "sweep": str(Path(given_file(flag_values.sweep, "--sweep")).resolve()),
    }
    if flag_values.workdir and is_remote(flag_values.workdir):
        raise ValueError(
            f"--workdir={flag_values.workdir}: the folder of a sweep holds the logs and the exit statuses of "
            "other processes, and cannot be in a bucket; give a folder"
        )
    with at("--workdir"):
        folder = expanded(flag_values.workdir or Path("runs") / file_name(name))
    return Folder(Path(folder).resolve(), identity)


def make_engine(folder: Path):
    """Return the engine that --engine names.

    Args:
        folder: The folder of the sweep.

    Raises:
        ValueError: A flag of the engine is wrong, or the engine is not installed and a run may
            start.
    """
    flag_values = flags.FLAGS
    engine: slurm.Slurm | gke.Gke | Local
    if flag_values.engine == "slurm":
        engine = slurm.Slurm(folder, flag_values.max_jobs)
    elif flag_values.engine == "gke":
        engine = gke.Gke(folder)
    else:
        engine = Local(folder)
    if not flag_values.dry_run:
        engine.check_installed()
    return engine


def job_of(folder, run, shared):
    """Return the Job of a run.

    Args:
        shared: Arguments of every launch/train.py.
    """
    return folder.job(run.name, train_arguments(run, folder.path, shared))


def scores(folder, run):
    """Return what a run has measured: Results.scores."""
    return results_of(as_config(run.config), folder.path / run.name).scores()


def report(recipe, folder, runs, statuses, show):
    """Print and plot all runs, in the recipe's own report too if it has one.

    Exits with status 1 if a run failed, or with 75 if one was stopped.

    Args:
        statuses: {name: exit status}, see Sweep.run.
    """
    status_by_name = {run.name: statuses.get(run.name, 0) for run in runs}
    # In the sweep's order. `statuses` has the order in which runs end
    finished_folders = [folder.path / name for name in status_by_name if statuses.get(name) == 0]
    if hasattr(recipe, "report_sweep") and finished_folders:
        recipe.report_sweep(folder.path, finished_folders)
    with common.one_message():
        show.last()
    failed_names = [name for name, status in status_by_name.items() if status not in (0, STOPPED)]
    if failed_names:
        message = (
            f"error: {len(failed_names)} of {len(runs)} runs failed: {', '.join(failed_names)}"
        )
        print(message, file=sys.stderr)
        sys.exit(FAILED)
    if STOPPED in status_by_name.values():
        sys.exit(STOPPED)


def parse_flags(argv):
    """Parse the command line.

    Returns:
        (the config, the arguments with which each run loads it).
    """
    config = common.parse_config(argv, "sweep")
    overrides, _ = split_arguments(flags.FLAGS.read_flags_from_files(argv, False))
    config_flags = [f"--config.{field}={text}" for field, text in overrides]
    observer_flags = [
        flag.serialize() for flag in map(flags.FLAGS.__getitem__, common.OBSERVERS) if flag.present
    ]
    return config, [f"--config={flags.FLAGS.config}", *config_flags, *observer_flags]


if __name__ == "__main__":
    define_flags()
    common.run_program(main, parse_flags)
