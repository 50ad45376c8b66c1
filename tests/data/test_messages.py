"""Conversations read from files and datasets, against what was written there."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deepseek_jax.data.messages import parse_conversation, read_conversations, worked_conversations
from deepseek_jax.worlds.bilingual.tasks import bilingual_puzzle_task
from deepseek_jax.worlds.world import given_solution
from tests.turns import turns

RECORDS = [
    {"messages": turns("2 + 3?", "<think>\nGröße 5\n</think>\n\n5"), "weight": 0.25},
    {"messages": turns("a", "b", "c", "d", system="Be brief."), "source": {"a": [1, None]}},
    {"messages": turns(" spaces are kept ", "\n\nyes\n")},
]
WANTED = [{"weight": 1.0} | record for record in RECORDS]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def everything(source):
    return by_messages(source[i] for i in range(len(source)))


def by_messages(records):
    return sorted(records, key=lambda record: repr(record["messages"]))


def test_a_jsonl_file_gives_its_conversations_as_they_stand(tmp_path):
    """Oracle: the records that were written; 0.25 is exact in float32."""
    path = write(tmp_path / "my.jsonl", RECORDS)
    source = read_conversations(path, tmp_path / "data")
    assert everything(source) == by_messages(WANTED)
    assert source.__getitems__([2, 0]) == [source[2], source[0]]


def test_an_edited_file_is_read_anew(tmp_path):
    """Oracle: the records of each writing."""
    path = write(tmp_path / "my.jsonl", RECORDS)
    assert len(read_conversations(path, tmp_path / "data")) == 3
    write(path, RECORDS[:1])
    assert everything(read_conversations(path, tmp_path / "data")) == WANTED[:1]


class Chats(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset as someone else would prepare it, without weights and with a field of its own."""

    VERSION = tfds.core.Version("2.0.0")
    url_infos = None
    field = "messages"

    def _info(self):
        text = tfds.features.Text()
        message = {"content": text, "role": text, "name": text}
        features = {self.field: tfds.features.Sequence(message), "id": np.int32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i, record in enumerate(RECORDS):
            messages = [m | {"name": "x"} for m in record["messages"]]
            yield i, {self.field: messages, "id": i}


class OtherFeature(Chats, skip_registration=True):
    field = "chat"


def prepare(builder, folder):
    builder = builder(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_a_prepared_dataset_gives_its_conversations(tmp_path):
    """Oracle: the records that it was made of, their field too; each weighs 1 by default; a slice."""
    folder = prepare(Chats, tmp_path)
    source = read_conversations(folder, None, "test")
    wanted = [{"messages": r["messages"], "weight": 1.0, "id": i} for i, r in enumerate(RECORDS)]
    assert everything(source) == by_messages(wanted)
    assert len(read_conversations(folder, None, "test[:2]")) == 2


class Texts(Chats, skip_registration=True):
    """Two splits, in a form that is written anew before it is read."""

    def _info(self):
        text = tfds.features.Text()
        features = {"prompt": text, "completion": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._of(split) for split in ("train", "test")}

    def _of(self, split):
        yield 0, {"prompt": f"asked in {split}", "completion": "a"}


def test_two_splits_of_a_dataset_are_two_datasets(tmp_path):
    """Oracle: the record of each split, in its own form and with its columns renamed."""
    folder = prepare(Texts, tmp_path)
    for columns in ({}, {"prompt": "completion", "completion": "prompt"}):
        for split in ("train", "test"):
            (found,) = everything(read_conversations(folder, tmp_path / "data", split, columns))
            wanted = turns(f"asked in {split}", "a")
            texts = [m["content"] for m in wanted]
            assert [m["content"] for m in found["messages"]] == texts[:: -1 if columns else 1]


def test_a_weight_in_a_csv_file_is_a_number(tmp_path):
    """Oracle: by hand."""
    (tmp_path / "a.csv").write_text("prompt,completion,weight,topic\nQ,A,0.5,7\n")
    found = read_conversations(tmp_path / "a.csv", tmp_path / "data")[0]
    assert found == {"messages": turns("Q", "A"), "weight": 0.5, "topic": "7"}


def test_a_dataset_that_does_not_fit_is_refused(tmp_path):
    """Oracle: the words a reader needs."""
    folder = prepare(Chats, tmp_path)
    with pytest.raises(
        ValueError, match="^path=.* has no records in split='train'; choose from test"
    ):
        read_conversations(folder, None)
    with pytest.raises(
        ValueError, match="^path=.* is a folder without state.json and dataset_info"
    ):
        read_conversations(tmp_path, None)
    with pytest.raises(ValueError, match="record 0 is no conversation; its columns are chat, id"):
        read_conversations(prepare(OtherFeature, tmp_path), tmp_path / "data", "test")


GOOD = {"messages": turns("a", "b")}


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"title": "a"}', "is no conversation; its columns are title, and a line has messages"),
        ('{"messages": []}', "no list under 'messages'"),
        ('{"messages": {"role": "user"}}', "no list under 'messages'"),
        ('{"messages": ["hello"]}', "message 1 is no object with role and content"),
        ({"messages": turns("a", "b", "c")}, "roles user, assistant, user;"),
        ({"messages": turns("a", "b")[::-1]}, "roles assistant, user;"),
        ({"messages": turns(system="s")}, "roles system;"),
        ({"messages": [*turns("a", "b"), *turns(system="s")]}, "roles user, assistant, system;"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "message 1 has the role 'tool'; allowed",
        ),
        ({"messages": turns("a", " \n")}, "message 2 has no text under 'content'"),
        ({"messages": [{"role": "user"}]}, "message 1 has no text under 'content'"),
        ({"messages": turns("a", "\ud800")}, "half of a surrogate pair"),
        (GOOD | {"weight": 0}, "weight=0; set a finite number above 0"),
        (GOOD | {"weight": float("nan")}, "weight=None"),
        (GOOD | {"weight": 1e39}, r"weight=1e\+39"),  # infinite in float32
        (GOOD | {"weight": True}, "weight=True"),
        (GOOD | {"weight": "one"}, "weight='one'"),
        (GOOD | {"weight": "nan"}, "weight='nan'"),
        (GOOD | {"line": 3}, "a column 'line', the name of a part of the prompt here"),
        (GOOD | {"weight": None}, "weight=None"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    """Oracle: file, line and the words a reader needs."""
    text = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "my.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{text}\n")
    with pytest.raises(ValueError, match=words) as error:
        read_conversations(path, tmp_path / "data")
    assert f"{path}, line 3" in str(error.value)


def test_a_split_of_a_file_is_refused(tmp_path):
    """Oracle: the words a reader needs."""
    path = write(tmp_path / "my.jsonl", [GOOD])
    with pytest.raises(ValueError, match="^path=.* is a file, which has no split='test'"):
        read_conversations(path, tmp_path / "data", "test")


def test_bytes_that_are_no_text_are_named():
    """Oracle: the place and the message."""
    record = {"messages": turns(b"a", b"\xff")}
    with pytest.raises(ValueError, match="here, message 2: its content is not UTF-8"):
        parse_conversation("here", record)


def test_an_example_with_a_solution_is_answered_by_it():
    """Oracle: the examples' own solutions."""
    examples = bilingual_puzzle_task(0, 20).held_out
    for example, conversation in zip(
        examples, worked_conversations(examples, given_solution), strict=True
    ):
        assert conversation["messages"] == turns(example["question"], example["solution"])
