"""A config's recipe in its work directory: what the programs and ds.train share.

JAX is imported where it is used: the programs read a config before they import it.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from deepseek_jax import recipes
from deepseek_jax.errors import at, suggest
from deepseek_jax.files import as_path
from deepseek_jax.named_code import code_digests
from deepseek_jax.progress import hush, line, waiting_for
from deepseek_jax.recipes.commits import with_commits
from deepseek_jax.recipes.stop import Stop
from deepseek_jax.recipes.workdir import CODE, HUB, REHEARSED, claim_workdir, read_mark
from deepseek_jax.settings import build

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from deepseek_jax.recipes.results import Results


class Observers(NamedTuple):
    """What looks on at a run, None for nothing: a Profile, a Watchdog and a WandbRun of training."""

    profile: Any = None
    watchdog: Any = None
    wandb: Any = None


NOBODY = Observers()


def recipe_modules() -> dict[str, str]:
    """{name of a recipe: its module below recipes}: NAME.py, which has SETTINGS, or NAME/run.py."""
    folders = [Path(folder) for folder in recipes.__path__]
    # Files are read, not imported: one recipe does not need the dependencies of another
    files = [file for folder in folders for file in folder.glob("*.py") if _is_recipe(file)]
    modules = {file.stem: file.stem for file in files}
    for folder in folders:
        modules |= {f.parent.name: f"{f.parent.name}.run" for f in folder.glob("*/run.py")}
    return modules


def find_recipe(name: str) -> ModuleType:
    """The module of a recipe, as driver says. Raises ValueError for an unknown name."""
    modules = recipe_modules()
    if name not in modules:
        raise ValueError(
            f"config.recipe={name!r} is not a recipe; {suggest(name, sorted(modules))}"
        )
    return importlib.import_module(f"{recipes.__name__}.{modules[name]}")


def _is_recipe(file):
    return "\nSETTINGS = " in file.read_text()


class Opened(NamedTuple):
    """A config's recipe: its module, its settings, with names on the hub at the run's commits, and the mesh.
    recorded: for claim_workdir.
    """

    recipe: ModuleType
    settings: Any
    mesh: "Mesh"
    recorded: dict[str, Any]


def opened(config: ConfigDict, workdir: Path) -> Opened:
    """What a config means for the run in a work directory. Raises ValueError for a wrong field, and as
    with_commits does.
    """
    from deepseek_jax.costs.exchange import exchange_of
    from deepseek_jax.ops import platform
    from deepseek_jax.parallel.mesh import MeshSettings, make_mesh

    recipe = find_recipe(config.get("recipe"))
    settings = build(recipe.SETTINGS, config, "config")
    config, commits = with_commits(config, settings, read_mark(workdir)[1])
    if commits:
        settings = build(recipe.SETTINGS, config, "config")
    recorded = {CODE: code_digests(settings), HUB: commits, REHEARSED: platform.rehearsed}
    axes = build(MeshSettings, config.get("mesh", {}), "config.mesh")
    with at("config"):
        exchange = exchange_of(config.get("model", {}))
    with at("config.mesh"):
        mesh = make_mesh(**dataclasses.asdict(axes), exchange=exchange)
    return Opened(recipe, settings, mesh, recorded)


def opened_by_all(config: ConfigDict, workdir: Path) -> Opened:
    """opened, of all processes together: a mistake that one of them sees, such as a file that it lacks, is
    raised on all, and so is a difference between what they record.
    """
    from deepseek_jax.parallel.processes import agreed

    def open_it():
        found = opened(config, workdir)
        return found, found.recorded

    return agreed(open_it, "the code that the config names, or a commit of the hub,")


def results_of(config: ConfigDict, folder: Path) -> "Results":
    """The Results of a run in a folder, on no device."""
    # Here, because it imports jax, which a mistake should not wait for
    from deepseek_jax.recipes.results import Results

    recipe = find_recipe(config.get("recipe"))
    settings = build(recipe.SETTINGS, config, "config")
    return Results(settings, recipe.stages(settings), as_path(folder))


def run_recipe(
    config: ConfigDict,
    workdir: Path,
    listen: Callable[[], Callable[[], bool]] = Stop,
    *,
    observers: Observers = NOBODY,
    strict: bool = False,
    redo: bool = False,
    console_seconds: float | None = None,
    after_step: Callable[[], bool] | None = None,
) -> None:
    """Run config's recipe in workdir on its mesh; a process may repeat it. Raises ValueError for a mistake,
    an errors.Fault for a fault of the run, and SystemExit(STOPPED) where it was asked to stop and has saved.

    listen() -> whether it was asked to stop, as Stop says, after a step or within a measurement. after_step:
    of steps, in its place. strict: of the recipe's Run. redo: of driver.run. console_seconds: of
    MetricsWriter.
    """
    with waiting_for("importing the recipe"):
        import jax

        from deepseek_jax.ops import platform
        from deepseek_jax.recipes import driver
        from deepseek_jax.training.metrics import MetricsWriter
        from deepseek_jax.training.run import Run, stoppable

    # Before the work directory is claimed: a misspelt field is named even if that is another config's
    with waiting_for("reading the config"):
        recipe, settings, mesh, recorded = opened_by_all(config, workdir)
    hush(jax.process_index() != 0)
    with claim_workdir(workdir, config, recorded) as claim, jax.set_mesh(mesh):
        if jax.process_index() == 0:
            devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
            if platform.rehearsed is not None:
                devices += f", a rehearsal of {platform.rehearsed}: its numbers are no results"
            line(f"{config.recipe} on {devices}; work directory {workdir}")
        writer = MetricsWriter(workdir, console_seconds, observers.wandb, config.to_dict())
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
                driver.run(recipe, settings, run, claim, redo)
                if platform.rehearsed is not None:
                    line(f"forms of a {platform.rehearsed} that ran: {platform.forms_taken()}")
            finally:
                if run.profile is not None:
                    run.profile.report()
