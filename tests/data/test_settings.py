"""A split and names of columns, in every block that reads a user's data."""

import datasets
import pytest

from configs import distill_small, grpo_small
from deepseek_jax.data.preferences import read_preferences
from deepseek_jax.data.settings import OwnPath
from deepseek_jax.recipes.distill.settings import DistillSettings
from deepseek_jax.recipes.distill.tasks import file_tasks
from deepseek_jax.recipes.grpo.run import TaskQuestions
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import CorpusSettings
from deepseek_jax.recipes.r1.settings import OwnDataSettings
from deepseek_jax.recipes.reward_model.settings import DataSettings
from deepseek_jax.settings import build
from deepseek_jax.worlds.own import own_world


@pytest.fixture
def saved(tmp_path):
    """saved(columns of a row) -> a folder whose split "test" has eight such rows, and "train" another."""

    def save(row):
        rows = [{name: text.replace("N", str(n)) for name, text in row.items()} for n in range(8)]
        parts = {"train": [{"other": "o"}], "test": rows}
        data = {split: datasets.Dataset.from_list(part) for split, part in parts.items()}
        datasets.DatasetDict(data).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    return save


def test_preferences(saved):
    """Oracle: by hand."""
    path = saved({"q": "N?", "good": "a", "bad": "b"})
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    data = build(DataSettings, dict(path=path, split="test", columns=columns), "config.data")
    train, held_out = read_preferences("helpfulness", data, 2, seed=0)
    asked = {record["messages"][0]["content"] for record in train + held_out}
    assert asked == {f"{n}?" for n in range(8)}
    assert train[0]["responses"] == ["a", "b"]


def test_documents(saved, tmp_path):
    """Oracle: by hand."""
    fields = dict(split="test", columns={"text": "content"}, num_held_out=2)
    data = build(CorpusSettings, dict(sources=(saved({"content": "tN"}),), **fields), "config.data")
    parts = open_corpus(data, tmp_path / "data", 0)
    found = {part[i]["text"] for part in parts for i in range(len(part))}
    assert found == {f"t{n}".encode() for n in range(8)}


def test_general_questions(saved):
    """Oracle: by hand; the task is a small world's."""
    general = dict(path=saved({"q": "N?"}), split="test", columns={"question": "q"})
    general |= dict(num_steps=1, per_step=1, rewards={"correct": 1.0})
    settings = build(
        GrpoSettings, grpo_small.get_config().to_dict() | {"general": general}, "config"
    )
    found = TaskQuestions(settings).general
    assert [example["question"] for example in found] == [f"{n}?" for n in range(8)]


def test_a_users_own_world(saved):
    """Oracle: by hand; a block and the same questions as conversations."""
    path = saved({"q": "N?", "a": "so #### N"})
    columns = {"question": "q", "answer": "a"}
    fields = {
        name: dict(path=path, split="test", columns=columns) for name in ("reasoning", "general")
    }
    data = build(OwnDataSettings, fields, "config.data")
    assert data.reasoning == OwnPath(path=path, split="test", columns=columns)
    world = own_world(data.reasoning, "exact_answer", data.general, template="r1_zero")
    task = world.questions["reasoning"].make(0, 2)
    assert {e["answer"] for e in task.train + task.held_out} == {str(n) for n in range(8)}
    task = world.questions["general"].make(0, 2)
    assert {e["question"] for e in task.train + task.held_out} == {f"{n}?" for n in range(8)}
    assert build(OwnDataSettings, dict(reasoning=path), "config.data").reasoning == path
    with pytest.raises(ValueError, match="config.data.reasoning.*lacks path"):
        build(OwnDataSettings, dict(reasoning=dict(split="test")), "config.data")


def test_the_tasks_of_a_distillation(saved, tmp_path):
    """Oracle: by hand, of the texts that are learned and of the questions that are asked."""
    path = saved({"q": "N?", "shown": "And N?", "a": "so N"})
    asked = dict(path=path, split="test", columns={"question": "q", "answer": "a"})
    task = dict(path=path, split="test", columns={"prompt": "shown", "completion": "a"})
    task |= dict(num_held_out=2, questions=asked, rule="exact_answer")
    config = distill_small.get_config().to_dict() | {"tasks": {"own": task}}
    found = file_tasks(build(DistillSettings, config, "config"), tmp_path / "data")["own"]
    assert len(found.train) == 6 and len(found.held_out) == 2
    assert found.train[0]["messages"][1]["content"].startswith("so ")
    assert [example["question"] for example in found.questions] == [f"{n}?" for n in range(8)]
