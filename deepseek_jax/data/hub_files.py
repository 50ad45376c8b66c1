"""Files of one split of a data set on the Hugging Face hub.

They are chosen by the configs in the data set's README, or else by the files' names. Only data
files are downloaded, and no code: a data set that is a loading script is refused.
"""

import glob
import re
from pathlib import Path

from deepseek_jax.errors import suggest
from deepseek_jax.hub import DATA, HubId, hub_id, names_of_files, snapshot

README = "README.md"
# Advice for a README that cannot be used
HOW = "fetch the files (`hf download --repo-type dataset ...`) and give the path of one"
# A set of characters in a pattern, such as [0-9]
SET = re.compile(r"\[[^\]]+\]")
# Fields of a README's config that say where the files are
PLACES = {"data_files", "data_dir"}
# Separators between the words of a file's name, and the end of a shard's name
WORDS = re.compile(r"[-._ ]+")
SHARD = re.compile(r"-\d{4,}-of-\d{4,}(-\w+)?$")
# If no file's name contains one of these words, all files are the split "train"
SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


def dataset_files(name: str, split: str) -> list[Path]:
    """Download the files of a split and return their local paths, in order.

    Args:
        name: ORG/NAME[:SUBSET][@REVISION].
        split: The name of the split.

    Raises:
        ValueError: The subset or the split does not exist (the message names the ones that exist),
            the files have other formats, or there are no files. Also as `hub.pinned` does.
    """
    given_id = hub_id(name)
    # A name of another form is no name on the hub
    assert given_id is not None
    dataset_id = given_id.at_commit("dataset")
    folder = snapshot(dataset_id, "dataset", [README])
    names = names_of_files(dataset_id, "dataset")
    configs = _configs(folder / README)
    if configs:
        chosen_names = _by_config(dataset_id, split, configs, names)
    else:
        chosen_names = _by_name(dataset_id, split, names)
    folder = snapshot(dataset_id, "dataset", [glob.escape(file_name) for file_name in chosen_names])
    return [folder / file_name for file_name in chosen_names]


def _configs(readme: Path):
    """Return {name: config} of the configs in a README that say where their files are.

    They are in the YAML before the README's text.
    """
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        metadata = (metadata_load(readme) if readme.is_file() else None) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"the YAML of {readme} is damaged: {' '.join(str(error).split())}"
        ) from error
    configs = metadata.get("configs") or []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise ValueError(f"{readme} has configs that are no list of blocks; {HOW}")
    configs_with_files = [config for config in configs if PLACES & config.keys()]
    for config in configs_with_files:
        if not isinstance(config.get("data_dir", ""), str):
            raise ValueError(
                f"{readme} has a data_dir={config['data_dir']!r} that is no text; {HOW}"
            )
    return {str(config.get("config_name", "default")): config for config in configs_with_files}


def _by_config(dataset_id, split, configs, names):
    """Return the names of a split's files according to the README's configs."""
    subset = dataset_id.subset or _usual_subset(dataset_id, configs)
    if subset not in configs:
        raise ValueError(f"{dataset_id} has no subset {subset!r}; {suggest(subset, configs)}")
    prefix = configs[subset].get("data_dir")
    if "data_files" not in configs[subset]:
        return _by_name(dataset_id, split, names, f"{prefix}/")
    splits = _patterns(dataset_id, configs[subset]["data_files"])
    if split not in splits:
        raise ValueError(f"split={split!r} is not one of {dataset_id}; {suggest(split, splits)}")
    patterns = [f"{prefix}/{pattern}" if prefix else pattern for pattern in splits[split]]
    matches = [n for p in patterns for n in names if _regex(p).fullmatch(n)]
    if not matches:
        raise ValueError(
            f"{dataset_id}: its {README} gives {', '.join(patterns)} for split={split!r}, and no file has "
            "such a name"
        )
    unreadable_names = [name for name in matches if not name.endswith(DATA)]
    if unreadable_names:
        raise ValueError(
            f"{dataset_id}: {unreadable_names[0]} of split={split!r} is not read, only {', '.join(DATA)}; "
            f"try {_converted(dataset_id)}"
        )
    # A file that two patterns match is read once
    return [*dict.fromkeys(matches)]


def _usual_subset(dataset_id, configs):
    """Return the name of the config to use if the id has no subset."""
    default_names = [name for name, config in configs.items() if config.get("default")]
    usual_names = default_names or [
        name for name in configs if name == "default" or len(configs) == 1
    ]
    if not usual_names:
        raise ValueError(
            f"{dataset_id} has several subsets ({', '.join(configs)}); "
            f"write {dataset_id.repo}:{next(iter(configs))}"
        )
    return usual_names[0]


def _patterns(dataset_id, data_files):
    """Parse data_files, in any of its forms, to {split: patterns}.

    Raises:
        ValueError: The value has another form.
    """
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    if isinstance(data_files, str):
        data_files = [data_files]
    splits: dict[str, list[str]] = {}
    for data_file in data_files if isinstance(data_files, list) else [data_files]:
        # A pattern without a split belongs to "train", as in the library datasets
        entry = {"path": data_file} if isinstance(data_file, str) else data_file
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"{dataset_id}: its {README} has data_files with {data_file!r}; {HOW}")
        splits.setdefault(str(entry.get("split", "train")), []).extend(paths)
    return splits


def _regex(pattern):
    """Compile a pattern of paths, in which only ** matches across folders."""
    regex_by_wildcard = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    text = "".join(
        regex_by_wildcard.get(p) or (p if SET.fullmatch(p) else re.escape(p)) for p in pieces
    )
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(
            f"the {README} has a pattern {pattern!r} that is none: {error}; {HOW}"
        ) from error


def _by_name(dataset_id, split, names, folder=None):
    """Return the names of a split's files, by the words in the names.

    Args:
        dataset_id: The HubId.
        split: The name of the split.
        names: The names of all files.
        folder: How the names must begin; None to find the folder of the subset.
    """
    data_names = [name for name in names if name.endswith(DATA) and not name.startswith(".")]
    if not data_names:
        raise ValueError(_without_files(dataset_id, names))
    folder = _folder(dataset_id, data_names) if folder is None else folder
    data_names = [name for name in data_names if name.startswith(folder)]
    words_by_name = {name: _words(name.removeprefix(folder)) for name in data_names}
    chosen_names = [name for name in data_names if split in words_by_name[name]]
    if (
        not chosen_names
        and split == "train"
        and not SPLIT_WORDS & set().union(*words_by_name.values())
    ):
        chosen_names = data_names
    if not chosen_names:
        raise ValueError(
            f"split={split!r} is in no file's name of {dataset_id}; there are {', '.join(data_names[:9])}"
            + (f" and {len(data_names) - 9} more" if len(data_names) > 9 else "")
        )
    extension = next(
        extension for extension in DATA if any(name.endswith(extension) for name in chosen_names)
    )
    return [name for name in chosen_names if name.endswith(extension)]


def _folder(dataset_id, data_names):
    """Return how the names of a subset's files begin: "" or a folder with a slash."""
    top_folders = sorted({name.partition("/")[0] for name in data_names if "/" in name})
    if dataset_id.subset is not None:
        if dataset_id.subset not in top_folders:
            raise ValueError(
                f"{dataset_id} has no subset {dataset_id.subset!r}; {suggest(dataset_id.subset, top_folders)}"
            )
        return f"{dataset_id.subset}/"
    for usual_folder in ("data", "default"):
        if usual_folder in top_folders:
            return f"{usual_folder}/"
    # Files at the top, folders of splits, or the folder of the only subset
    if any("/" not in name for name in data_names) or SPLIT_WORDS & set(top_folders):
        return ""
    if len(top_folders) > 1:
        raise ValueError(
            f"{dataset_id} has several subsets ({', '.join(top_folders)}); "
            f"write {dataset_id.repo}:{top_folders[0]}"
        )
    return f"{top_folders[0]}/"


def _words(name):
    """Return the words of a path that can be a split: its folders and parts of the file's name."""
    *folders, file_name = name.split("/")
    stem = file_name.rpartition(".")[0]
    unsharded_stem = SHARD.sub("", stem)
    # In a shard's name _ belongs to the split: train_sft is not train
    separators = WORDS if unsharded_stem == stem else re.compile("[-.]")
    return {*folders, unsharded_stem, *separators.split(unsharded_stem)}


def _without_files(dataset_id: HubId, names):
    scripts = [name for name in names if name.endswith(".py")]
    if scripts:
        return (
            f"{dataset_id} is a loading script ({scripts[0]}), and no code is run; its files may be at "
            f"{_converted(dataset_id)}"
        )
    return f"{dataset_id} has no {', '.join(DATA)}, only {', '.join(names[:9]) or 'no files'}"


def _converted(dataset_id):
    """Return the id of the parquet files that the hub makes of most data sets."""
    return str(HubId(dataset_id.repo, dataset_id.subset, "refs/convert/parquet"))
