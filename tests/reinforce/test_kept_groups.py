"""The groups that a step of GRPO keeps: whole ones of its batch, as many as the settings say, once."""

import dataclasses
import json

import numpy as np
import pytest

from deepseek_jax.reinforce.metrics import draw_groups, kept_groups
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.training.completions import read_completions
from tests.reinforce.rollouts import rollout_of
from tests.reinforce.test_grpo import TOKENIZER, asked, make_source, state  # noqa: F401
from tests.reinforce.test_update import train


def fails(text):
    return len(text) % 3 == 1


@pytest.fixture(autouse=True)
def by_length(monkeypatch):
    """A reward in which groups differ, and which fails on some lengths."""

    def reward(text, _):
        if fails(text):
            raise ValueError
        return len(text) / 10

    for name in ("correct", "correct_reasoning"):
        monkeypatch.setitem(scoring.RULES, name, Rule(reward))


def test_kept_groups_are_those_of_the_batch(state, monkeypatch):  # noqa: F811
    """Oracle: the batch itself, row by row: its text, decoded, its length and advantage, and the reward of
    the text by hand; and, as a column that a reward logs, the number of its row.
    """
    scored_by, rows = Answers.scored_by, {"row": list(range(8))}

    def logging(*given):
        return dataclasses.replace(scored_by(*given), columns=rows)

    monkeypatch.setattr(Answers, "scored_by", logging)
    source = make_source(prompts_per_step=2, group_size=4, kept_groups=2)
    (batch,), _ = source.next(state, 0)
    ids, mask = (np.asarray(batch[f"completion_{part}"]) for part in ("ids", "mask"))
    groups, examples = source.completions(), asked(2)
    assert [(g["prompt"], g["answer"]) for g in groups] == [
        (example["question"], example["answer"]) for example in examples
    ]
    assert [len(group["completions"]) for group in groups] == [4, 4]
    every = [each for group in groups for each in group["completions"]]
    assert 0 < sum(fails(kept["text"]) for kept in every) < 8
    for row, kept in enumerate(every):
        assert kept["advantage"] == np.asarray(batch["advantages"])[row]
        assert kept["columns"] == {"row": row}
        if fails(kept["text"]):
            # Masked out of the loss
            assert np.isnan(kept["reward"]) and kept["advantage"] == 0 and not mask[row].any()
            continue
        assert kept["text"] == TOKENIZER.decode(ids[row][mask[row]])
        assert kept["length"] == mask[row].sum()
        parts = dict.fromkeys(source.rewards.weights, np.float32(len(kept["text"]) / 10))
        assert kept["parts"] == parts and kept["reward"] == sum(parts.values())
        assert kept["truncated"] == (ids[row][mask[row]][-1] not in source.policy.eos_ids)
    source.next(state, 1)
    # Of two steps the first and the last have a line, and with log_every=3 the second of three has none
    assert source.completions()
    source = make_source(num_steps=3, log_every=3)
    source.next(state, 1)
    assert not source.completions()


@pytest.mark.parametrize("numbers", [[], [0], [1, 2], [0, 1, 2]])
def test_a_group_is_kept_whole(numbers):
    """Oracle: by hand, of three groups of four: all completions of each, with its own advantages."""
    group = {
        "columns": {"tokens": [5, 6, 7, 8]},
        "texts": list("abcd"),
        "rewards": np.arange(4.0),
        "parts": {},
        "rollout": rollout_of(np.ones((4, 2), int)),
        "unread": np.array([False, True, False, False]),
    }
    example = {"answer": "2", "topic": "sums", "prompt_ids": [1]}
    groups = [group | {"example": example | {"question": f"q{place}"}} for place in range(3)]
    kept = kept_groups(groups, np.arange(12.0), numbers)
    assert [each["prompt"] for each in kept] == [f"q{number}" for number in numbers]
    assert [[one["text"] for one in each["completions"]] for each in kept] == [list("abcd")] * len(
        numbers
    )
    advantages = [[one["advantage"] for one in each["completions"]] for each in kept]
    assert advantages == [[4 * n, 4 * n + 1, 4 * n + 2, 4 * n + 3] for n in numbers]
    unread = [[one["unread"] for one in each["completions"]] for each in kept]
    assert unread == [[False, True, False, False]] * len(numbers)
    assert [each["columns"] for each in kept] == [{"topic": "sums"}] * len(numbers)
    logged = [[one["columns"]["tokens"] for one in each["completions"]] for each in kept]
    assert logged == [[5, 6, 7, 8]] * len(numbers)


def test_every_place_of_a_batch_is_kept_equally_often():
    """Oracle: the binomial distribution of 2 of 16 groups over 800 logged steps, every tenth: 100 times, and
    five standard deviations of sqrt(800 x 1/8 x 7/8) = 9.4 either side.
    """
    drawn = [draw_groups(16, 2, 0, step) for step in range(0, 8000, 10)]
    assert all(a < b for a, b in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=16)
    assert len(counts) == 16 and counts.min() >= 53 and counts.max() <= 147


@pytest.mark.parametrize("groups, count, size", [(16, 0, 0), (16, 16, 16), (3, 5, 3), (1, 2, 1)])
def test_a_step_keeps_no_more_groups_than_it_has(groups, count, size):
    """Oracle: by hand: each group at most once, in order, and all of them where the count allows it."""
    drawn = draw_groups(groups, count, 7, 3)
    assert len(drawn) == size and drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(groups))


@pytest.mark.slow
def test_a_run_that_was_stopped_keeps_what_an_undisturbed_one_does(tmp_path):
    """Oracle: the file of the run that nothing stopped, byte for byte; each logged step is there once. The
    stopped one has lines of steps after its last checkpoint, as a killed one has.
    """
    fields = dict(num_steps=4, save_every=2, log_every=1)
    train(tmp_path / "whole", **fields)
    calls = iter(range(100))
    with pytest.raises(SystemExit):
        train(tmp_path / "parts", should_stop=lambda: next(calls) == 1, **fields)
    path, whole = (tmp_path / name / "completions.jsonl" for name in ("parts", "whole"))
    late = json.loads(path.read_text().splitlines()[-1]) | {"step": 2}
    path.write_text(path.read_text() + json.dumps(late) + "\n")
    train(tmp_path / "parts", **fields)
    assert path.read_bytes() == whole.read_bytes()
    lines = read_completions(path, "rl")
    assert len(lines) == len(path.read_text().splitlines())
    steps = [line["step"] for line in lines]
    assert sorted(set(steps)) == [0, 1, 2, 3]
    # By default a step keeps two groups, here all that it has
    assert len({(line["step"], line["prompt"]) for line in lines}) == len(lines) == 8
