"""Datasets on disk that are cut, damaged or name code."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from deepseek_jax.data.sources import file_documents, read, tfds_documents
from deepseek_jax.data.stored import stored_dataset


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(a jsonl file, a data_dir with its dataset, the dataset's folder)."""
    folder = tmp_path_factory.mktemp("corpus")
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(300)))
    file_documents(file, folder / "data")
    (built,) = (folder / "data").glob("file_corpus/texts_*/1.0.0")
    return file, folder / "data", built


@pytest.fixture
def dataset(corpus, tmp_path):
    """A copy of the dataset."""
    return Path(shutil.copytree(corpus[2], tmp_path / "1.0.0"))


def shard(dataset):
    (path,) = dataset.glob("*.array_record*")
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_cut_file_is_named_at_once(dataset, share):
    """Oracle: the file's name: a reader of array_record would wait for ever."""
    path = shard(dataset)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        ValueError, match=rf"^path='{dataset}': {path} is cut short .* of its 300 rec"
    ):
        tfds_documents(dataset)


def test_a_cut_file_of_our_own_making_is_to_be_removed_and_is_then_built_anew(corpus, tmp_path):
    """Oracle: the remedy of the message, followed: the documents are there again."""
    file, data = corpus[0], tmp_path / "data"
    path = shard(Path(shutil.copytree(corpus[1], data) / corpus[2].relative_to(corpus[1])))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=f"{path} is cut .*remove {path.parent}, and it is built anew"
    ):
        file_documents(file, data)
    shutil.rmtree(path.parent)
    assert len(file_documents(file, data)) == 300


def test_a_damaged_record_names_its_file_when_it_is_read(dataset):
    """Oracle: the file with one byte changed."""
    path = shard(dataset)
    content = bytearray(path.read_bytes())
    # Among the first records
    content[2000] ^= 255
    path.write_bytes(content)
    source = tfds_documents(dataset)
    with pytest.raises(
        ValueError, match=f"^path='{dataset}': {path} is damaged .*prepare the datas"
    ):
        read(source, list(range(300)))


def test_a_missing_file_is_named(dataset):
    """Oracle: the file that was removed."""
    path = shard(dataset)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing; copy or prepare the dataset anew"):
        tfds_documents(dataset)


@pytest.mark.parametrize("place", ["top", "inside"])
def test_a_description_that_names_code_is_refused_and_the_code_is_not_imported(
    dataset, tmp_path, monkeypatch, place
):
    """Oracle: a module that leaves a trace when it is imported, where Python would find it."""
    (tmp_path / "foreign_features.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = dataset / "features.json"
    features = json.loads(path.read_text())
    inner = next(iter(features["featuresDict"]["features"].values()))
    (features if place == "top" else inner)["pythonClassName"] = "foreign_features.Text"
    path.write_text(json.dumps(features))
    with pytest.raises(
        ValueError, match="names the class foreign_features.Text, which would be imp"
    ):
        stored_dataset(dataset)
    assert "foreign_features" not in sys.modules
