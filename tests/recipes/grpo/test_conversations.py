"""The whole recipe with an environment and with a tool, at toy size."""

import numpy as np
import pytest

from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.reinforce import sampler
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.training.completions import read_completions
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.worlds.calculator.tasks import answered
from deepseek_jax.worlds.guess.environment import MOST_TURNS
from tests.recipes.conversing import guess_config, tools_config
from tests.recipes.grpo.test_run import assert_same_outcome
from tests.recipes.outcome import scores_in, without_group
from tests.recipes.small import run_recipe


def said_of(workdir):
    """[(metrics of a step, the completions of its groups)]: the runs here keep all of them."""
    groups = read_completions(workdir / "completions.jsonl")
    return [
        (line, [c for g in groups if g["step"] == line["step"] for c in g["completions"]])
        for line in read_metrics(workdir / "metrics.jsonl", "grpo")
    ]


def turns_of(completion):
    return sum(message["role"] == "assistant" for message in completion["messages"])


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """The work directory of a run of games that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("games")
    run_recipe(grpo, guess_config(), workdir)
    return workdir


def test_metrics_are_those_of_the_games_that_are_kept(games):
    """Oracle: by hand, from the messages: each turn is a call of step, and a game that is found has one reply
    less than turns.
    """
    for line, completions in said_of(games):
        assert len(completions) == 8
        turns = list(map(turns_of, completions))
        # A turn that is cut calls nothing
        replies = [sum(m["role"] == "user" for m in c["messages"]) for c in completions]
        found = [not c["truncated"] for c in completions]
        assert line["turns"] == np.mean(turns) > 1
        assert line["tool_calls"] == np.mean(np.add(replies, found))
        assert line["truncated_turns"] == sum(c["truncated"] for c in completions)
        assert line["tool_errors"] == line["rewritten_turns"] == 0 < line["tool_seconds"]
        for completion, n, end in zip(completions, turns, found, strict=True):
            wanted = (1 - (n - 1) / MOST_TURNS) * end
            assert completion["parts"]["GuessNumber"] == pytest.approx(wanted)
            read = completion["messages"]
            # The reply after the last turn allowed is read no more
            read = read if read[-1]["role"] == "assistant" else read[:-1]
            ends = {"assistant": "", "user": "\n"}
            assert completion["text"] == "".join(m["content"] + ends[m["role"]] for m in read)
        assert line["completion_length"] == np.mean([c["length"] for c in completions])
        assert line["sampler_gap_max"] < 1e-4
    assert without_group(games) == set()


def test_before_and_after_are_measured_in_games(games):
    """Oracle: the samples' messages: all have more than one turn but those found at once."""
    for name in ("before", "after"):
        for way in scores_in(games, name).values():
            assert all(turns_of(s) > 1 or s["right"] or s["truncated"] for s in way["samples"])
            assert {"accuracy", "GuessNumber"} <= way["scores"].keys()


class Killed(BaseException):
    """What no recipe catches."""


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_rollout_ends_like_one_that_was_not(games, tmp_path, monkeypatch):
    """Oracle: the metrics and the measurements of the run that nothing interrupted, digit for digit: games
    that had ended are not played again, and those under way begin anew.
    """
    add, ended, kills = SampleLog.add, [], []

    def dies_in_the_second_step(log, rows, rollout):
        add(log, rows, rollout)
        ended.extend((log.path.name, int(row)) for row in rows)
        if len(ended) > 8 and not kills:
            kills.append(len(ended))
            raise Killed

    monkeypatch.setattr(sampler, "SECONDS_BETWEEN_WRITES", 0)
    monkeypatch.setattr(SampleLog, "add", dies_in_the_second_step)
    with pytest.raises(Killed):
        run_recipe(grpo, guess_config(), tmp_path)
    assert list(tmp_path.glob("grpo/*_rollouts/*.jsonl"))
    run_recipe(grpo, guess_config(), tmp_path)
    assert_same_outcome(tmp_path, games)
    assert kills[0] < 16 == len(ended) == len(set(ended))
    ours, theirs = (each / "completions.jsonl" for each in (tmp_path, games))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_run_with_a_tool_learns_with_the_experts_that_were_chosen(tmp_path):
    """Oracle: by hand, from the messages; a gap of rounding alone between the sampler, which read the tool's
    texts in chunks, and the update, which reads whole rows and takes the sampler's experts.
    """
    run_recipe(grpo, tools_config(keep_routing=True), tmp_path)
    called = 0
    for line, completions in said_of(tmp_path):
        calls = [m.get("tool_calls", []) for c in completions for m in c["messages"]]
        results = [m for c in completions for m in c["messages"] if m["role"] == "tool"]
        assert line["turns"] == np.mean(list(map(turns_of, completions)))
        assert line["tool_calls"] == sum(map(len, calls)) / 16
        assert len(results) <= sum(map(len, calls))
        for call, result in zip([c for of in calls for c in of], results, strict=False):
            assert int(result["content"]) == sum(call["function"]["arguments"].values())
        assert line["sampler_gap_max"] < 1e-4
        called += sum(map(len, calls))
        assert all(c["parts"]["answered"] in (0, 1) for c in completions)
    assert called > 0 and answered("add(1, 2)3\n3", {"answer": "3"})
