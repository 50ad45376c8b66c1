"""Questions read from files and datasets, and their prompts, against what was written there."""

import copy
import dataclasses
import json

import pytest
import tensorflow_datasets as tfds

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.questions import evaluation_texts, read_questions, render_question
from tests.turns import turns

THINK = "<think>\n"


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_file_in_gsm8ks_format_gives_each_question_once_in_its_order(tmp_path):
    """Oracle: by hand."""
    lines = [("3 men?", "#### 3"), ("2 + 3?", "2 + 3 = 5 #### 5"), ("3 men?", "#### 4")]
    path = write(tmp_path / "q.jsonl", [{"question": q, "answer": a} for q, a in lines])
    assert read_questions(path) == [
        {"question": "3 men?", "answer": "3"},
        {"question": "2 + 3?", "answer": "5"},
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
    assert found == [{"question": f"question {i}", "answer": f"answer {i}"} for i in range(2)]
    with pytest.raises(ValueError, match="choose from"):
        read_questions(path, "validation")


def test_an_evaluation_sets_solutions_keep_their_working(tmp_path):
    """Oracle: by hand, of each kind of source."""
    line = {"question": "3 men?", "answer": "1 + 2 = 3 #### 3"}
    assert evaluation_texts(str(write(tmp_path / "q.jsonl", [line, line]))) == (
        ["3 men?"],
        [line["answer"]] * 2,
    )
    chat = write(tmp_path / "c.jsonl", [{"messages": turns("Hi", "1 + 2 = 3")}])
    assert evaluation_texts(str(chat)) == (["Hi"], ["1 + 2 = 3"])
    questions, solutions = evaluation_texts(f"{prepared(tmp_path, Asked.fields)}@test")
    assert sorted(questions) == ["question 0", "question 1"]
    assert sorted(solutions) == ["answer 0", "answer 1"]


def test_a_dataset_without_questions_is_refused(tmp_path):
    """Oracle: the message."""
    with pytest.raises(ValueError, match="neither a feature messages nor question.*it has more"):
        read_questions(prepared(tmp_path, ("more",)))


def test_a_prompt_ends_in_the_opening_once_whatever_the_template_writes(deepseek):
    """Oracle: R1's template as released first, which stops before the thought, and as it is now."""
    example, plain = {"question": "2 + 3?"}, render_prompt(deepseek, "2 + 3?", template="chat")
    opened = [*plain, *deepseek.encode(THINK)]
    for written in ("", "<think>", THINK):
        chat = copy.copy(deepseek.chat)
        end = "{{'<｜Assistant｜>'}}"
        assert end in chat.chat_template
        escaped = written.replace("\n", "\\n")
        chat.chat_template = chat.chat_template.replace(end, f"{{{{'<｜Assistant｜>{escaped}'}}}}")
        tokenizer = dataclasses.replace(deepseek, chat=chat)
        assert render_question(tokenizer, example, template="chat", opening=THINK) == opened
    assert render_question(deepseek, example, template="chat") == plain


def test_what_was_said_before_stands_in_the_prompt(smollm2):
    """Oracle: the text that transformers renders."""
    messages = turns("Hi", "Hello", "2 + 3?", system="Be brief.")
    example = {"question": "2 + 3?", "messages": messages}
    text = smollm2.chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = render_question(smollm2, example, template="chat")
    assert smollm2.backend.decode(ids, skip_special_tokens=False) == text
