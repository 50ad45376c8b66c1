"""The files of a split on the hub, from a server on this machine."""

import pytest

from deepseek_jax.data.hub_files import dataset_files
from tests.hub_server import served_hub, used_here

GSM8K = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: train
    path: [socratic/a.jsonl, "socratic/**/b.jsonl"]
---
# Grade school math
"""
FILES = {
    "main/train-00000-of-00002.parquet": b"1",
    "main/train-00001-of-00002.parquet": b"2",
    "main/test-00000-of-00001.parquet": b"3",
    "socratic/b.jsonl": "4",
    "socratic/below/b.jsonl": "5",
    "socratic/a.jsonl": "6",
    "gsm8k.py": "raise SystemExit('code of a data set has run')",
}


@pytest.fixture
def hub(tmp_path):
    with served_hub() as served, used_here(served, tmp_path):
        yield served


def contents(name, split):
    return [path.read_text() for path in dataset_files(name, split)]


@pytest.mark.parametrize(
    "name, split, wanted",
    [
        ("openai/gsm8k:main", "train", ["1", "2"]),
        ("openai/gsm8k:main", "test", ["3"]),
        ("openai/gsm8k:socratic", "train", ["6", "4", "5"]),
    ],
)
def test_a_readmes_configs_say_which_files_a_split_has(hub, name, split, wanted):
    """Oracle: by hand, the patterns of the README in their order; nothing else is asked for."""
    hub.push("openai/gsm8k", FILES | {"README.md": GSM8K}, kind="dataset")
    assert contents(name, split) == wanted
    assert sorted(hub.sent) == sorted(
        ["README.md", *(path for path, text in FILES.items() if str(text).strip("b'") in wanted)]
    )


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("openai/gsm8k", "train", r"several subsets \(main, socratic\); write openai/gsm8k:main"),
        ("openai/gsm8k:mian", "train", "no subset 'mian'; did you mean main"),
        ("openai/gsm8k:main", "validation", "^split='validation' .*allowed: train, test"),
    ],
)
def test_a_subset_or_split_that_is_not_there_lists_those_that_are(hub, name, split, message):
    """Oracle: the names in the README."""
    hub.push("openai/gsm8k", FILES | {"README.md": GSM8K}, kind="dataset")
    with pytest.raises(ValueError, match=message):
        dataset_files(name, split)


@pytest.mark.parametrize(
    "about, wanted",
    [
        ("data_files: x.csv", ["x"]),
        ("data_files: [x.csv, 'd/*.csv']", ["x", "y"]),
        ("data_files: {train: 'd/*.csv', test: x.csv}", ["y"]),
        ("data_files: '*.csv'\n  data_dir: d", ["y"]),
        ("data_dir: d", ["y"]),
    ],
)
def test_every_form_of_a_configs_files_is_read(hub, about, wanted):
    """Oracle: by hand, the files of "train" in each form that the library datasets documents."""
    readme = f"---\nconfigs:\n- config_name: only\n  {about}\n---\n"
    files = {"x.csv": "x", "d/y.csv": "y", "d/e/z.csv": "z" if "data_dir" not in about else ""}
    files = {path: text for path, text in files.items() if text}
    hub.push("org/data", files | {"README.md": readme}, kind="dataset")
    assert contents("org/data", "train") == wanted


@pytest.mark.parametrize(
    "about",
    [
        "configs: [main, other]",
        "configs: {main: {data_files: x.csv}}",
        "configs: x.csv",
        "configs: [{data_files: [{split: train}]}]",
        "configs: [{data_files: [{split: train, path: [3]}]}]",
        "configs: [{data_files: 3}]",
        "configs: [{data_files: {train: {path: x.csv}}}]",
        "configs: [{data_files: '[z-a].csv'}]",
        "configs: [{data_files: x.csv, data_dir: [d]}]",
        "configs: [{data_dir: 3}]",
        "[configs]",
    ],
)
def test_a_readme_of_another_form_is_named(hub, about):
    """Oracle: one ValueError with the name of the README."""
    hub.push("org/data", {"x.csv": "x", "README.md": f"---\n{about}\n---\n"}, kind="dataset")
    with pytest.raises(ValueError, match="README.md"):
        dataset_files("org/data", "train")


def test_a_bracket_alone_is_a_letter(hub):
    """Oracle: by hand."""
    readme = "---\nconfigs: [{data_files: 'x[.csv'}]\n---\n"
    hub.push("org/data", {"x[.csv": "x", "README.md": readme}, kind="dataset")
    assert contents("org/data", "train") == ["x"]


@pytest.mark.parametrize(
    "paths, name, split, wanted",
    [
        # What push_to_hub writes; a longer name of a split is another split
        (
            ["data/train-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"],
            "org/data",
            "train",
            [0],
        ),
        (["main/my_train.csv", "main/my_test.csv", "other/test.csv"], "org/data:main", "test", [1]),
        # refs/convert/parquet has folders of splits in those of subsets
        (["default/test/0000.parquet", "default/train/0000.parquet"], "org/data", "train", [1]),
        (["all/test/0000.parquet", "all/train/0000.parquet"], "org/data", "test", [0]),
        (["train.csv", "train.jsonl", "README.md"], "org/data", "train", [1]),
        (["questions.jsonl"], "org/data", "train", [0]),
    ],
)  # fmt: skip
def test_without_configs_a_files_name_says_its_split(hub, paths, name, split, wanted):
    """Oracle: by hand; a file's content is its number in the list."""
    hub.push("org/data", {path: str(i) for i, path in enumerate(paths)}, kind="dataset")
    assert contents(name, split) == [str(i) for i in wanted]


@pytest.mark.parametrize(
    "files, name, split, message",
    [
        (["train.jsonl"], "org/data", "test", "split='test' is in no file's name.*train.jsonl"),
        (["a/train.csv", "b/train.csv"], "org/data", "train", "several subsets .a, b.; write org/data:a"),
        (["a/train.csv"], "org/data:c", "train", "no subset 'c'; allowed: a"),
        (["data.py"], "org/data", "train", r"loading script \(data.py\).*at org/data@refs/convert/parquet"),
        (["train.jsonl.gz"], "org/data", "train", "only train.jsonl.gz"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read_says_what_there_is(hub, files, name, split, message):
    """Oracle: the names of the files, none of which is fetched."""
    hub.push("org/data", dict.fromkeys(files, "x"), kind="dataset")
    with pytest.raises(ValueError, match=message):
        dataset_files(name, split)
    assert hub.sent == []


def test_the_revision_of_converted_files_is_read(hub):
    """Oracle: the content on that branch, whose name has slashes."""
    hub.push("org/data", {"data.py": "x"}, kind="dataset")
    files = {"main/train/0000.parquet": "right"}
    hub.push("org/data", files, kind="dataset", revision="refs/convert/parquet")
    assert contents("org/data:main@refs/convert/parquet", "train") == ["right"]


def test_a_pinned_split_is_read_again_without_a_network(hub, tmp_path):
    """Oracle: the content before the branch moved; of another split the message has the command."""
    first = hub.push("org/data", {"train.jsonl": "old", "test.jsonl": "t"}, kind="dataset")
    name = f"org/data@{first}"
    hub.push("org/data", {"train.jsonl": "new"}, kind="dataset")
    assert contents(name, "train") == ["old"] and contents("org/data", "train") == ["new"]
    with used_here(hub, tmp_path, offline=True):
        assert contents(name, "train") == ["old"]
        command = f"hf download org/data --repo-type dataset --revision {first}"
        with pytest.raises(ValueError, match=f"HF_HUB_OFFLINE is set.*`{command}`"):
            dataset_files(name, "test")
