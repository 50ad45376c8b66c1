"""The recipe with an environment: samples are conversations, of which the dataset has the single turns."""

import json
import shutil

import jax
import pytest

from deepseek_jax.data.messages import read_conversations
from deepseek_jax.recipes import origin
from deepseek_jax.rollout.policy import load_policy
from deepseek_jax.rollout.settings import AnswerOptions, ConversationLimits
from deepseek_jax.synthesis.teacher import read_rows
from tests.recipes.generate.test_run import DATASET, made, run
from tests.rollout.conversing import opened
from tests.tiny import save_tiny_model

LIMITS = dict(turns=3, turn_length=12, call_steps=2)
ENVIRONMENT = """
import random

class Even:
    def reset(self, answer, **row):
        return f"\\nWhat is {answer[0]}?"

    def step(self, text: str) -> str | None:
        return None if len(text) % 2 == 0 else "".join(random.choices("0123456789", k=3))

    def get_reward(self) -> float:
        return 0.5
"""


def opening(example):
    """What reset returns."""
    return f"\nWhat is {example['answer'][0]}?"


def fields(folder):
    """Of a random model and of the environment in a folder; others of GenerateSettings."""
    sampling = dict(samples_per_prompt=4, max_completion_length=48, max_prompt_length=32, slots=8)
    return dict(
        init_from=str(folder / "params"),
        base=None,
        model={},
        environment=f"{folder / 'even.py'}:Even",
        conversation=LIMITS,
        rewards=dict(correct=1.0, Even=1.0),
        sampling=sampling | dict(temperature=1.0, top_p=1.0),
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_tiny_model(folder / "params")
    (folder / "even.py").write_text(ENVIRONMENT)
    return folder


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    run(workdir, chunk_size=12, **fields(teacher))
    return workdir


@pytest.mark.slow
def test_samples_are_those_of_one_rollout_of_conversations(teacher, finished):
    """Oracle: Policy.answer of all prompts; the tokens are those of the model alone, and the reward is that
    of get_reward, as no answer is right.
    """
    rows = list(read_rows(finished / "samples"))
    samples = [sample for row in rows for sample in row["samples"]]
    policy = load_policy(teacher / "params")
    options = AnswerOptions(max_completion_length=48, slots=8)
    named = dict(
        tools=(),
        environment=fields(teacher)["environment"],
        conversation=ConversationLimits(**LIMITS),
    )
    with opened(policy, **named) as policy:
        asked = policy.with_prompts([row["example"] for row in rows])
        answers = policy.answer(asked, options, n=4, seed=0)
    assert [s["text"] for s in samples] == list(answers.texts)
    assert [s["tokens"] for s in samples] == answers.rollout.completion_mask.sum(1).tolist()
    assert [s["messages"] for s in samples] == [c.messages for c in answers.conversations]
    assert [s["finished"] for s in samples] == (~answers.rollout.truncated).tolist()
    assert {s["reset_text"] for s in rows[0]["samples"]} == {opening(rows[0]["example"])}
    assert {s["reward"] - s["parts"]["correct"] for s in samples} == {0.5}
    assert max(len(s["messages"]) for s in samples) == 6


def test_the_dataset_has_the_single_turns_and_counts_the_others(finished):
    """Oracle: the samples on disk, by hand: what ended in its first turn is learned, after the question with
    the text of reset.
    """
    wanted, several = set(), 0
    for row in read_rows(finished / "samples"):
        example, texts = row["example"], []
        for sample in row["samples"]:
            ended = sample["finished"] and sample["text"]
            several += bool(ended and len(sample["messages"]) > 1)
            if ended and len(sample["messages"]) == 1:
                texts.append(sample["text"])
        wanted |= {(example["question"] + opening(example), text) for text in texts[:4]}
    source = read_conversations(finished / DATASET, None)
    assert {
        tuple(m["content"] for m in source[i]["messages"]) for i in range(len(source))
    } == wanted
    fates = json.loads((finished / "report.json").read_text())["completions"].values()
    assert sum(f.get("of several turns", 0) for f in fates) == several > 0 < len(wanted)


def test_stopped_after_a_completion_it_ends_in_the_same_bytes(teacher, finished, tmp_path):
    """Oracle: the bytes of the run that nothing interrupted."""
    stops = iter([False, False, True])
    with pytest.raises(SystemExit):
        run(tmp_path, lambda: next(stops, True), chunk_size=12, **fields(teacher))
    assert list((tmp_path / "samples").glob("*.ended"))
    run(tmp_path, chunk_size=12, **fields(teacher))
    assert made(tmp_path) == made(finished)


def test_other_tools_sample_anew(teacher, finished, tmp_path):
    """Oracle: the samples, of the same run but for a limit: no conversation has a second turn. Those that are
    there are dropped where one asks for it alone.
    """
    shutil.copytree(finished, tmp_path / "w")
    other = fields(teacher) | dict(conversation=LIMITS | dict(turns=1))
    with pytest.raises(ValueError, match="\n  samples .complete.: data\n  dataset .complete.: "):
        run(tmp_path / "w", chunk_size=12, **other)
    assert made(tmp_path / "w") == made(finished)
    run(tmp_path / "w", redo=True, chunk_size=12, **other)
    samples = [s for row in read_rows(tmp_path / "w" / "samples") for s in row["samples"]]
    assert {sum(m["role"] == "assistant" for m in s["messages"]) for s in samples} == {1}


def test_several_teachers_are_refused_before_anything_is_loaded(teacher, tmp_path, monkeypatch):
    """Oracle: the message. Two processes are said to be there: the check reads their number alone."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.delattr(origin, "load_policy")
    with pytest.raises(
        ValueError, match="^config.teacher_processes=1 of 2 processes makes several"
    ):
        run(tmp_path, **fields(teacher))
    assert not list(tmp_path.iterdir())
