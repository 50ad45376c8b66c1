"""The run of a config's recipe in a work directory: what the programs and ds.train share.

JAX is imported where it is used: the programs read a config before they import JAX.
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
    """Optional observers of a run, and what started it; None for each that is not there.

    Attributes:
        profile: A training.profile.Profile.
        watchdog: A training.watchdog.Watchdog.
        wandb: A training.wandb_board.WandbRun.
        started_by: The experiment and the command of a program, as run.json has them.
    """

    profile: Any = None
    watchdog: Any = None
    wandb: Any = None
    started_by: dict[str, str] | None = None


NOBODY = Observers()


def recipe_modules() -> dict[str, str]:
    """Return {name of the recipe: its module below recipes}.

    A recipe is a file NAME.py that has SETTINGS, or a file NAME/run.py.
    """
    folders = [Path(folder) for folder in recipes.__path__]
    # Files are read, not imported: one recipe does not need the dependencies of another
    files = [file for folder in folders for file in folder.glob("*.py") if _is_recipe(file)]
    modules = {file.stem: file.stem for file in files}
    for folder in folders:
        modules |= {f.parent.name: f"{f.parent.name}.run" for f in folder.glob("*/run.py")}
    return modules


def check_recipe(name: str) -> dict[str, str]:
    """Raise ValueError if the name of a recipe is unknown; return recipe_modules()."""
    modules = recipe_modules()
    if name not in modules:
        raise ValueError(
            f"config.recipe={name!r} is not a recipe; {suggest(name, sorted(modules))}"
        )
    return modules


def find_recipe(name: str) -> ModuleType:
    """Import the module of a recipe; driver.py says what it contains.

    Raises:
        ValueError: The name is unknown.
    """
    modules = check_recipe(name)
    return importlib.import_module(f"{recipes.__name__}.{modules[name]}")


def _is_recipe(file):
    return "\nSETTINGS = " in file.read_text()


class OpenedRecipe(NamedTuple):
    """A config's recipe, ready to run.

    Attributes:
        recipe: The recipe's module.
        settings: Its settings, with hub names at the run's commits.
        mesh: The mesh of the run.
        recorded: What claim_workdir records in addition to the config.
    """

    recipe: ModuleType
    settings: Any
    mesh: "Mesh"
    recorded: dict[str, Any]


def opened(config: ConfigDict, workdir: Path) -> OpenedRecipe:
    """Read a config for a run in a work directory: its recipe, settings and mesh.

    Raises:
        ValueError: A field is wrong; also as with_commits does.
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
    mesh_settings = build(MeshSettings, config.get("mesh", {}), "config.mesh")
    with at("config"):
        exchange = exchange_of(config.get("model", {}))
    with at("config.mesh"):
        mesh = make_mesh(**dataclasses.asdict(mesh_settings), exchange=exchange)
    return OpenedRecipe(recipe, settings, mesh, recorded)


def opened_by_all(config: ConfigDict, workdir: Path) -> OpenedRecipe:
    """Call `opened` on all processes together.

    Raises:
        ValueError: On all processes, if one of them finds a mistake, such as a file that it lacks,
            or if the processes would record different things.
    """
    from deepseek_jax.parallel.processes import agreed

    def open_recipe():
        opened_recipe = opened(config, workdir)
        return opened_recipe, opened_recipe.recorded

    return agreed(open_recipe, "the code that the config names, or a commit of the hub,")


def results_of(config: ConfigDict, folder: Path) -> "Results":
    """Return the Results of a run in a folder, without using a device."""
    # Imported here because it imports jax: a mistake is reported sooner
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
    """Run a config's recipe in a work directory; one process may call it repeatedly.

    Args:
        config: The config, which names the recipe and the mesh.
        workdir: The run's folder.
        listen: Returns a function, such as a Stop, that returns True once the run was asked to
            stop. That function is called after a step, and within a measurement.
        observers: What observes the training.
        strict: The field of training.run.Run.
        redo: The argument of driver.run.
        console_seconds: The argument of MetricsWriter.
        after_step: Called after a step in place of the function from `listen`.

    Raises:
        ValueError: A mistake of the user.
        errors.Fault: A fault of the run.
        SystemExit: With status STOPPED, once a run that was asked to stop has saved.
    """
    with waiting_for("importing the recipe"):
        import jax

        from deepseek_jax.ops import platform
        from deepseek_jax.recipes import driver
        from deepseek_jax.recipes.compilations import announced_compilations
        from deepseek_jax.recipes.run_record import described_devices
        from deepseek_jax.training.metrics import MetricsWriter
        from deepseek_jax.training.run import Run, stoppable

    # Before the claim: a misspelt field is reported even if the directory belongs to another config
    with waiting_for("reading the config"):
        recipe, settings, mesh, recorded = opened_by_all(config, workdir)
    hush(jax.process_index() != 0)
    with claim_workdir(workdir, config, recorded) as claim, jax.set_mesh(mesh):
        if jax.process_index() == 0:
            line(f"{config.recipe} on {described_devices(mesh)}; work directory {workdir}")
        writer = MetricsWriter(workdir, console_seconds, observers.wandb, config.to_dict())
        # Close it even if the run raises: in a bucket its last lines are not written yet
        should_stop = listen()
        with contextlib.closing(writer), stoppable(should_stop), announced_compilations():
            run = Run(
                mesh,
                workdir,
                writer,
                after_step or should_stop,
                profile=observers.profile,
                watchdog=observers.watchdog,
                strict=strict,
            )
            try:
                driver.run(recipe, settings, run, claim, redo, observers.started_by)
                if platform.rehearsed is not None:
                    line(f"forms of a {platform.rehearsed} that ran: {platform.forms_taken()}")
            finally:
                if run.profile is not None:
                    run.profile.report()
