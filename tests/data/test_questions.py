"""Questions read from files and datasets, against what was written there."""

import json

import pytest
import tensorflow_datasets as tfds

from deepseek_jax.data.questions import evaluation_texts, read_questions
from tests.hub_server import served_hub, used_here
from tests.turns import turns


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_file_in_gsm8ks_format_gives_each_question_once_in_its_order(tmp_path):
    """Oracle: by hand."""
    lines = [("3 men?", "#### 3"), ("2 + 3?", "2 + 3 = 5 #### 5"), ("3 men?", "#### 4")]
    path = write(tmp_path / "q.jsonl", [{"question": q, "answer": a} for q, a in lines])
    assert read_questions(path) == [
        {"question": "3 men?", "answer": "3", "solution": "#### 3"},
        {"question": "2 + 3?", "answer": "5", "solution": "2 + 3 = 5 #### 5"},
    ]


def test_of_a_conversation_the_last_question_is_asked_behind_the_rest(tmp_path):
    """Oracle: by hand; the same question after other messages is another question."""
    first, second = turns("Hi", "Hello", "2 + 3?", "5"), turns("2 + 3?", "five", system="Words.")
    path = write(tmp_path / "c.jsonl", [{"messages": m} for m in (first, second, first)])
    assert read_questions(path) == [
        {"question": "2 + 3?", "answer": "5", "messages": first[:-1]},
        {"question": "2 + 3?", "answer": "five", "messages": second[:-1]},
    ]


class Asked(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset as someone else would prepare it."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None
    fields = ("question", "answer", "more")

    def _info(self):
        features = {name: tfds.features.Text() for name in self.fields}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {name: f"{name} {i}" for name in self.fields}


def prepared(folder, fields):
    builder = type("Asked", (Asked,), {"fields": fields}, skip_registration=True)(
        data_dir=folder, file_format="array_record"
    )
    builder.download_and_prepare()
    return folder / "asked" / "1.0.0"


def test_a_dataset_gives_the_questions_of_its_split(tmp_path):
    """Oracle: by hand."""
    path = prepared(tmp_path, Asked.fields)
    found = sorted(read_questions(path, "test"), key=repr)
    assert found == [{name: f"{name} {i}" for name in sorted(Asked.fields)} for i in range(2)]
    with pytest.raises(ValueError, match="choose from"):
        read_questions(path, "validation")


def test_columns_that_are_none_count_as_absent(tmp_path):
    """Oracle: by hand: files of three forms, merged into one table."""
    none = {"question": None, "prompt": None, "messages": None, "answer": None}
    lines = [{"question": "a?", "answer": "1"}, {"prompt": "b?", "answer": "2"}]
    lines.append({"messages": turns("c?", "3")})
    found = read_questions(write(tmp_path / "q.jsonl", [none | line for line in lines]))
    assert [(e["question"], e["answer"]) for e in found] == [("a?", "1"), ("b?", "2"), ("c?", "3")]


def test_an_evaluation_sets_solutions_keep_their_working(tmp_path):
    """Oracle: by hand, of each kind of source."""
    line = {"question": "3 men?", "answer": "1 + 2 = 3 #### 3"}
    assert evaluation_texts(str(write(tmp_path / "q.jsonl", [line, line]))) == (
        ["3 men?"],
        [line["answer"]],
    )
    chat = write(tmp_path / "c.jsonl", [{"messages": turns("Hi", "1 + 2 = 3")}])
    assert evaluation_texts(str(chat)) == (["Hi"], ["1 + 2 = 3"])
    questions, solutions = evaluation_texts(f"{prepared(tmp_path, Asked.fields)}@test")
    assert sorted(questions) == ["question 0", "question 1"]
    assert sorted(solutions) == ["answer 0", "answer 1"]
    # A column that is None counts as absent
    merged = write(tmp_path / "m.jsonl", [line | {"solution": None}])
    assert evaluation_texts(str(merged)) == (["3 men?"], [line["answer"]])
    # A file whose name has the sign
    at_home = write(tmp_path / "q@home.jsonl", [line])
    assert evaluation_texts(str(at_home)) == (["3 men?"], [line["answer"]])


def test_a_revision_of_an_evaluation_set_on_the_hub_is_no_split(tmp_path):
    """Oracle: the question of each commit, and of another split at one."""
    with served_hub() as hub, used_here(hub, tmp_path / "home"):
        commits = []
        for question in ("old?", "new?"):
            files = {
                f"{split}.jsonl": json.dumps({"question": f"{split} {question}", "answer": "5"})
                for split in ("train", "test")
            }
            commits.append(hub.push("org/sums", files, kind="dataset"))
        for name, question in {
            "org/sums": "train new?",
            f"org/sums@{commits[0]}": "train old?",
            f"org/sums@{commits[0]}@test": "test old?",
            "org/sums@main@test": "test new?",
        }.items():
            assert evaluation_texts(name)[0] == [question]


def test_a_dataset_without_questions_is_refused(tmp_path):
    """Oracle: the message."""
    with pytest.raises(
        ValueError, match="record 0 has no text under 'question'; its columns are more"
    ):
        read_questions(prepared(tmp_path, ("more",)))
