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


def dataset_files(name: str, split: str):
    """Download the files of a split and return their local paths, in order.

    Args:
        name: ORG/NAME[:SUBSET][@REVISION].
        split: The name of the split.

    Raises:
        ValueError: The subset or the split does not exist (the message names the ones that exist),
            the files have other formats, or there are no files. Also as `hub.pinned` does.
    """
    found = hub_id(name).at_commit("dataset")
    folder = snapshot(found, "dataset", [README])
    names = names_of_files(found, "dataset")
    configs = _configs(folder / README)
    if configs:
        chosen = _by_config(found, split, configs, names)
    else:
        chosen = _by_name(found, split, names)
    folder = snapshot(found, "dataset", [glob.escape(each) for each in chosen])
    return [folder / each for each in chosen]


def _configs(readme: Path):
    """Return {name: config} of the configs in a README that say where their files are.

    They are in the YAML before the README's text.
    """
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        about = (metadata_load(readme) if readme.is_file() else None) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"the YAML of {readme} is damaged: {' '.join(str(error).split())}"
        ) from error
    listed = about.get("configs") or []
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError(f"{readme} has configs that are no list of blocks; {HOW}")
    placed = [each for each in listed if PLACES & each.keys()]
    for each in placed:
        if not isinstance(each.get("data_dir", ""), str):
            raise ValueError(f"{readme} has a data_dir={each['data_dir']!r} that is no text; {HOW}")
    return {str(each.get("config_name", "default")): each for each in placed}


def _by_config(found, split, configs, names):
    """Return the names of a split's files according to the README's configs."""
    subset = found.subset or _usual_subset(found, configs)
    if subset not in configs:
        raise ValueError(f"{found} has no subset {subset!r}; {suggest(subset, configs)}")
    prefix = configs[subset].get("data_dir")
    if "data_files" not in configs[subset]:
        return _by_name(found, split, names, f"{prefix}/")
    splits = _patterns(found, configs[subset]["data_files"])
    if split not in splits:
        raise ValueError(f"split={split!r} is not one of {found}; {suggest(split, splits)}")
    patterns = [f"{prefix}/{each}" if prefix else each for each in splits[split]]
    matches = [n for p in patterns for n in names if _regex(p).fullmatch(n)]
    if not matches:
        raise ValueError(
            f"{found}: its {README} gives {', '.join(patterns)} for split={split!r}, and no file has such a "
            "name"
        )
    unread = [each for each in matches if not each.endswith(DATA)]
    if unread:
        raise ValueError(
            f"{found}: {unread[0]} of split={split!r} is not read, only {', '.join(DATA)}; try "
            f"{_converted(found)}"
        )
    # A file that two patterns match is read once
    return [*dict.fromkeys(matches)]


def _usual_subset(found, configs):
    """Return the name of the config to use if the id has no subset."""
    marked = [name for name, config in configs.items() if config.get("default")]
    usual = marked or [name for name in configs if name == "default" or len(configs) == 1]
    if not usual:
        raise ValueError(
            f"{found} has several subsets ({', '.join(configs)}); write {found.repo}:{next(iter(configs))}"
        )
    return usual[0]


def _patterns(found, data_files):
    """Return {split: patterns} of a config's data_files, in any of the forms of data_files.

    Raises:
        ValueError: The value has another form.
    """
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    if isinstance(data_files, str):
        data_files = [data_files]
    splits = {}
    for each in data_files if isinstance(data_files, list) else [data_files]:
        # A pattern without a split belongs to "train", as in the library datasets
        entry = {"path": each} if isinstance(each, str) else each
        paths = entry.get("path") if isinstance(entry, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError(f"{found}: its {README} has data_files with {each!r}; {HOW}")
        splits.setdefault(str(entry.get("split", "train")), []).extend(paths)
    return splits


def _regex(pattern):
    """Compile a pattern of paths, in which only ** matches across folders."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    split = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    text = "".join(parts.get(p) or (p if SET.fullmatch(p) else re.escape(p)) for p in split)
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(
            f"the {README} has a pattern {pattern!r} that is none: {error}; {HOW}"
        ) from error


def _by_name(found, split, names, folder=None):
    """Return the names of a split's files, by the words in the names.

    Args:
        found: The HubId.
        split: The name of the split.
        names: The names of all files.
        folder: How the names must begin; None to find the folder of the subset.
    """
    data = [name for name in names if name.endswith(DATA) and not name.startswith(".")]
    if not data:
        raise ValueError(_without_files(found, names))
    folder = _folder(found, data) if folder is None else folder
    data = [name for name in data if name.startswith(folder)]
    words = {name: _words(name.removeprefix(folder)) for name in data}
    chosen = [name for name in data if split in words[name]]
    if not chosen and split == "train" and not SPLIT_WORDS & set().union(*words.values()):
        chosen = data
    if not chosen:
        raise ValueError(
            f"split={split!r} is in no file's name of {found}; there are {', '.join(data[:9])}"
            + (f" and {len(data) - 9} more" if len(data) > 9 else "")
        )
    form = next(form for form in DATA if any(name.endswith(form) for name in chosen))
    return [name for name in chosen if name.endswith(form)]


def _folder(found, data):
    """Return how the names of a subset's files begin: "" or a folder with a slash."""
    tops = sorted({name.partition("/")[0] for name in data if "/" in name})
    if found.subset is not None:
        if found.subset not in tops:
            raise ValueError(
                f"{found} has no subset {found.subset!r}; {suggest(found.subset, tops)}"
            )
        return f"{found.subset}/"
    for usual in ("data", "default"):
        if usual in tops:
            return f"{usual}/"
    # Files at the top, folders of splits, or the folder of the only subset
    if any("/" not in name for name in data) or SPLIT_WORDS & set(tops):
        return ""
    if len(tops) > 1:
        raise ValueError(
            f"{found} has several subsets ({', '.join(tops)}); write {found.repo}:{tops[0]}"
        )
    return f"{tops[0]}/"


def _words(name):
    """Return the words of a path that can be a split: its folders and parts of the file's name."""
    *folders, last = name.split("/")
    stem = last.rpartition(".")[0]
    whole = SHARD.sub("", stem)
    # In a shard's name _ belongs to the split: train_sft is not train
    between = WORDS if whole == stem else re.compile("[-.]")
    return {*folders, whole, *between.split(whole)}


def _without_files(found: HubId, names):
    scripts = [name for name in names if name.endswith(".py")]
    if scripts:
        return (
            f"{found} is a loading script ({scripts[0]}), and no code is run; its files may be at "
            f"{_converted(found)}"
        )
    return f"{found} has no {', '.join(DATA)}, only {', '.join(names[:9]) or 'no files'}"


def _converted(found):
    """Return the id of the parquet files that the hub makes of most data sets."""
    return str(HubId(found.repo, found.subset, "refs/convert/parquet"))
