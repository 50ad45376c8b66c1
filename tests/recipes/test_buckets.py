"""A whole run in a bucket: stopped, resumed and completed, it leaves what it leaves in a folder."""

import json

import jax
import numpy as np
import pytest

from deepseek_jax import files
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.data.messages import read_conversations
from deepseek_jax.data.read_tokenizer import load_tokenizer
from deepseek_jax.data.sources import file_documents
from deepseek_jax.files import as_path
from deepseek_jax.recipes.grpo import run as grpo
from tests.data.test_messages import RECORDS, WANTED, by_messages, everything
from tests.data.test_tokenizer import save_small_tokenizer
from tests.recipes.small import CLOCKS, run_recipe, small_config


@pytest.fixture
def place(bucket):
    """An empty folder of a bucket."""
    bucket.objects.clear()
    return as_path(bucket.folder) / "run"


def stop_after(steps):
    """A should_stop that is True from its steps-th call on."""
    asked = iter(range(1000))
    return lambda: next(asked) >= steps - 1


def records(workdir):
    """The lines of metrics.jsonl in order, without clocks and memory."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith(CLOCKS)} for line in lines]


def names(workdir):
    """The files that a run leaves but for Orbax's and TensorBoard's, whose names are random."""
    found = [path.relative_to(workdir) for path in files.below(workdir) if path.is_file()]
    return {
        str(path)
        for path in found
        if not {"params", "checkpoints", "tensorboard"} & set(path.parts)
    }


@pytest.mark.slow
def test_a_run_in_a_bucket_is_a_run_in_a_folder(place, tmp_path, bucket):
    """Oracle: the run in a folder that nothing stopped: metrics, files, scores and parameters; stopped while
    it pre-trains and while it reinforces.
    """
    run_recipe(grpo, small_config(), tmp_path)
    for steps in (3, 3):
        with pytest.raises(SystemExit):
            run_recipe(grpo, small_config(), place, stop_after(steps))
    run_recipe(grpo, small_config(), place)
    assert records(place) == records(tmp_path) and len(records(place)) > 2
    scores = {"before/scores.json", "after/scores.json"}
    assert names(place) == names(tmp_path) >= scores | {"curves.png", "run.json"}
    for name in sorted(scores):
        assert (place / name).read_text() == (tmp_path / name).read_text()
    for stage in ("pretrain", "grpo"):
        theirs, ours = (load_orbax(each / stage / "params")[1] for each in (tmp_path, place))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    # Boards of three runs of the first phase or the second
    boards = [name for name in bucket.objects if name.startswith("run/tensorboard/")]
    assert {name.split("/")[2] for name in boards} == {"pretrain", "grpo", "held_out"}
    assert len(boards) >= 4


def test_data_and_tokenizers_are_read_from_a_bucket(place, tmp_path, bucket):
    """Oracle: the records that were written, and the tokenizer in a folder; the dataset that is built for
    them is in the bucket too, and is not built again by a process without a copy.
    """
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    files.write_whole(place / "my.jsonl", lines)
    source = read_conversations(place / "my.jsonl", place / "data")
    assert everything(source) == by_messages(WANTED)
    built = {name: data for name, data in bucket.objects.items() if "/data/" in name}
    assert sum(name.endswith("/dataset_info.json") for name in built) == 1
    files.remove_folder(files.cache_folder("staged"))
    again = read_conversations(place / "my.jsonl", place / "data")
    assert [again[i] for i in range(3)] == [source[i] for i in range(3)]
    assert {name: data for name, data in bucket.objects.items() if "/data/" in name} == built
    with pytest.raises(ValueError, match=f"{place}/absent.jsonl' is not a file"):
        file_documents(place / "absent.jsonl", place / "data")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files.upload(save_small_tokenizer(tmp_path / "plain", **special), place / "plain")
    files.write_whole(place / "plain" / "model.safetensors", "large")
    copy = files.cache_folder("staged")
    assert load_tokenizer(place / "plain").encode("a b") == [3, 4]
    assert not list(copy.rglob("*.safetensors"))
