"""What a run leaves in its folder: the parameters of a policy, or an adapter."""

from pathlib import Path

from deepseek_jax.files import as_path, parse_json

# The names of the folders that runs leave
LEFT = ("params", "adapter")
# In each of them: the record of its tokenizer and template, see data.carried
RECORD = "carried.json"


def left_in_run(path: str | Path):
    """The folder params or adapter in the folder of a run that leaves one policy; any other path as it is."""
    path = as_path(path)
    found = [path / name for name in LEFT if (path / name).is_dir()]
    return found[0] if found and is_run(path) else path


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
