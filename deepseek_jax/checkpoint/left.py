"""Results in a run's folder: find the parameters or the adapter that its stages wrote."""

from etils.epath import Path

from deepseek_jax.files import as_path, parse_json

# The folders with a stage's result: the parameters of a policy, or an adapter
LEFT = ("params", "adapter")
# A file in a stage's folder: the record of training.lineage
STAGE = "stage.json"
# A file in each folder of LEFT: the record of tokenizer and template, see data.carried
RECORD = "carried.json"
# A file in a run's folder: {"stage": the name of the stage that the run is for, or null}
RUN = "run.json"


def left_in_run(path: str | Path) -> Path:
    """Resolve the folder of a run, or of a stage, to the folder params or adapter that it contains.

    For a run, that is the result of the stage that the run is for. Any other path is returned as it
    is, and so is a folder without a result.
    """
    folder = as_path(path)
    stage = folder / (stage_of(folder) or "") if is_run(folder) else folder
    if stage == folder and not (folder / STAGE).is_file():
        return folder
    results = [stage / name for name in LEFT if (stage / name).is_dir()]
    return results[0] if results else folder


def record_of(stage: Path) -> dict:
    """Read the record of a stage's folder; {} if there is none.

    Its fields are stage (the stage's name), start (the stage that it began from) and checkpoint (if
    it began from one).
    """
    file = stage / STAGE
    return parse_json(file.read_text()) if file.is_file() else {}


def run_of(stage: Path) -> Path:
    """Return the folder of the run to which a stage's folder belongs."""
    return stage.parents[record_of(stage)["stage"].count("/")]


def params_of_start(stage: Path) -> Path | None:
    """Return the folder params of the stage that another stage began from.

    The folder need not exist. None if the stage began from no other.
    """
    start = record_of(stage).get("start")
    return run_of(stage) / start / LEFT[0] if start else None


def stage_of(run: Path) -> str | None:
    """Return the name of the stage that a run is for, or None.

    None means that there is no single such stage, or that the run has not recorded it yet.
    """
    file = run / RUN
    return parse_json(file.read_text())["stage"] if file.is_file() else None


def is_run(folder: str | Path) -> bool:
    """Return whether a folder is a run's work directory: its config.json names a recipe.

    recipes.workdir writes that file.
    """
    config = as_path(folder) / "config.json"
    try:
        fields = parse_json(config.read_text()) if config.is_file() else None
    # If a checkpoint's config.json is damaged, the code that reads the checkpoint says so
    except ValueError:
        return False
    return isinstance(fields, dict) and "recipe" in fields


def stages_left(folder: Path) -> str:
    """Return the end of a message about a run's folder: its folders params and adapter."""
    stages = [stage for stage in folder.iterdir() if stage.is_dir()]
    # A distillation has groups of stages
    stages += [stage for group in stages for stage in group.iterdir() if stage.is_dir()]
    results = [
        parent / name
        for parent in [folder, *stages]
        for name in LEFT
        # In a folder that save_orbax wrote, params are only the arrays
        if (parent / name).is_dir() and (parent == folder or not (parent / "config.json").is_file())
    ]
    if not results:
        return "it has left no parameters yet: let it end, then give its folder params"
    return f"give what it left there: {', '.join(map(str, sorted(results)))}"
