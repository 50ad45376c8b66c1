"""What a run leaves in its folder: the parameters of a policy, or an adapter."""

from pathlib import Path

from deepseek_jax.files import as_path, parse_json

# The names of the folders that runs leave
LEFT = ("params", "adapter")
# In the folder of a stage: the record of training.lineage
STAGE = "stage.json"
# In each of LEFT: the record of its tokenizer and template, see data.carried
RECORD = "carried.json"
# In the folder of a run: {"stage": the name of the stage that the run is for, or null}
RUN = "run.json"


def left_in_run(path: str | Path):
    """The folder params or adapter that the stage of a run has left which the run is for, where `path` is the
    run's folder; in that of one of its stages its own; any other path as it is.
    """
    path = as_path(path)
    stage = path / (stage_of(path) or "") if is_run(path) else path
    if stage == path and not (path / STAGE).is_file():
        return path
    found = [stage / name for name in LEFT if (stage / name).is_dir()]
    return found[0] if found else path


def record_of(stage: Path) -> dict:
    """The record of a stage's folder, {} where it is none: stage, its name; start, the stage that it began
    from; checkpoint, where it is one.
    """
    file = stage / STAGE
    return parse_json(file.read_text()) if file.is_file() else {}


def run_of(stage: Path) -> Path:
    """The folder of the run that has a stage's folder."""
    return stage.parents[record_of(stage)["stage"].count("/")]


def params_of_start(stage: Path) -> Path | None:
    """The folder of the params that the stage left which another began from; None where it has none there."""
    start = record_of(stage).get("start")
    return run_of(stage) / start / LEFT[0] if start else None


def stage_of(run: Path) -> str | None:
    """The name of the stage that a run is for; None where there is no single one, or none yet."""
    file = run / RUN
    return parse_json(file.read_text())["stage"] if file.is_file() else None


def is_run(folder: str | Path):
    """Whether a folder is the work directory of a run: its config.json names a recipe (recipes.workdir)."""
    config = as_path(folder) / "config.json"
    try:
        found = parse_json(config.read_text()) if config.is_file() else None
    # What is wrong with a checkpoint's config.json is said where it is read
    except ValueError:
        return False
    return isinstance(found, dict) and "recipe" in found


def stages_left(folder: Path):
    """The end of a message about the folder of a run: which folders params and adapter are below it."""
    stages = [each for each in folder.iterdir() if each.is_dir()]
    # A distillation has groups of stages
    stages += [each for group in stages for each in group.iterdir() if each.is_dir()]
    found = [
        each / name
        for each in [folder, *stages]
        for name in LEFT
        # Where save_orbax has written, params are the bare arrays
        if (each / name).is_dir() and (each == folder or not (each / "config.json").is_file())
    ]
    if not found:
        return "it has left no parameters yet: let it end, then give its folder params"
    return f"give what it left there: {', '.join(map(str, sorted(found)))}"
