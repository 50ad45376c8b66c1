"""The sampling of a step: what the policy is asked, and what is counted."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.costs.program import GENERATION, SYNC
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.reinforce import sampler
from deepseek_jax.reinforce.sampler import Sampler
from deepseek_jax.reinforce.settings import RolloutSettings
from deepseek_jax.rollout import sample_log
from deepseek_jax.rollout.completions import MeasuredLog, RolloutLog
from deepseek_jax.rollout.sample_log import SampleLog
from deepseek_jax.rollout.settings import AnswerOptions
from tests.reinforce.rollouts import rollout_of

PARAMS = {"w": np.float32([1, 2])}
EXAMPLES = [{"prompt_ids": [1] * 3}, {"prompt_ids": [1] * 17}, {"prompt_ids": [1]}]
ROLLOUT = RolloutSettings(
    max_prompt_length=20, max_completion_length=((0, 4), (2, 6)), temperature=0.5
)


@dataclasses.dataclass
class Asked:
    """A policy that notes what it is asked, and takes 5 s, of which 2 s are for the parameters."""

    now: list
    params: object = None
    calls: list = dataclasses.field(default_factory=list)

    def with_params(self, params):
        self.params = params
        return self

    def answer(self, examples, options, **more):
        self.calls.append((examples, options, more))
        self.now[0] += 5
        more["log"].weight_sync_seconds, more["log"].token_choices = 2.0, "kept"
        more["log"].exchanges, more["log"].exchange_rounds = 4, 5.5
        prompts = [example["prompt_ids"] for example in examples]
        return SimpleNamespace(prompts=prompts, rollout=rollout_of([[1, 0], [1, 1], [1, 1]]))


@pytest.fixture
def made(monkeypatch):
    """made(folder=, keep_routing=, rollout=) -> a Sampler of an Asked policy, on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(sampler, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def make(folder=None, keep_routing=False, rollout=ROLLOUT):
        settings = SimpleNamespace(seed=7, rollout=rollout, group_size=3, keep_routing=keep_routing)
        return Sampler(Asked(now), settings, folder)

    return make


@pytest.mark.parametrize("round_given", [(), (0,), (1,)])
def test_a_round_asks_by_seed_and_step_and_counts(made, round_given):
    """Oracle: numpy's seeds; by hand: five sampled tokens in 3 s beside 2 s for the parameters, and three
    prompts in room for 32 tokens.
    """
    sampled = made(keep_routing=bool(round_given))
    assert sampled.sampled_by == 0
    answers, counts = sampled.answer(PARAMS, EXAMPLES, 2, *round_given)
    ((examples, options, more),) = sampled.policy.calls
    assert examples is EXAMPLES and options == ROLLOUT.at(2) and sampled.policy.params is PARAMS
    log = more.pop("log")
    sequence = np.random.SeedSequence([7, 2, *(round_given or (0,))])
    seed = int(sequence.generate_state(1)[0]) // 2
    assert more == dict(n=3, seed=seed, longest_prompt=20)
    assert (log.keeps_routing, log.keeps_candidates) == (bool(round_given), False)
    assert log.own_rows
    assert counts == {
        SYNC: 2.0,
        GENERATION: 3.0,
        "exchanges": 4,
        "exchange_rounds": 5.5,
        "sampled_tokens": 5,
        "prefilled_positions": 96,
    }
    assert answers.prompts[1] == [1] * 17 and sampled.token_choices == "kept"
    assert sampled.sampled_by == int(fingerprint(PARAMS)) != 0


def test_a_rollout_that_keeps_candidates_writes_no_file(made, tmp_path):
    """Oracle: by hand: candidates are on the devices alone."""
    sampled = made(tmp_path, rollout=dataclasses.replace(ROLLOUT, top_k=5))
    sampled.answer(PARAMS, EXAMPLES, 0)
    log = sampled.policy.calls[0][2]["log"]
    assert type(log) is RolloutLog and log.keeps_candidates


def test_greedy_answers_are_a_measurement_of_the_longest_length(made):
    """Oracle: by hand: any step's longest is 6; a MeasuredLog leaves when the run is asked to stop."""
    sampled = made(rollout=dataclasses.replace(ROLLOUT, slots=5))
    sampled.answer_greedily(PARAMS, EXAMPLES)
    ((examples, options, more),) = sampled.policy.calls
    assert examples is EXAMPLES and sampled.policy.params is PARAMS
    assert options == AnswerOptions(max_completion_length=6, temperature=0.0, slots=5)
    assert isinstance(more.pop("log"), MeasuredLog)
    assert more == dict(seed=7, longest_prompt=20)


def test_completions_are_written_as_they_end_once_a_minute(made, tmp_path, monkeypatch):
    """Oracle: by hand: a file of step, round, parameters and process; the rest of it is written at the end,
    if it was begun; those of other processes for this round are read; after a checkpoint none is there.
    """
    written = []
    monkeypatch.setattr(SampleLog, "write", lambda self: written.append(self.path.name))
    folder = tmp_path / "rollouts"
    sampled = made(folder)
    sampled.answer(PARAMS, EXAMPLES, 4, 1)
    log = sampled.policy.calls[0][2]["log"]
    name = f"4_1_{sampled.sampled_by:08x}_0.jsonl"
    assert isinstance(log, SampleLog) and str(log.path) == str(folder / name)
    assert (log.writes, log.every) == (True, 60) and written == []
    folder.mkdir(exist_ok=True)
    (folder / name).touch()
    sampled.answer(PARAMS, EXAMPLES, 4, 1)
    assert written == [name]
    line = {"row": 3, "ids": np.int32([5]), "logprobs": np.float32([-1]), "finished": True}
    for other in (f"4_1_{sampled.sampled_by:08x}_1", f"4_0_{sampled.sampled_by:08x}_1"):
        (folder / f"{other}.jsonl").write_text(sample_log._text(line | {"row": len(written)}))
        written.append(other)
    monkeypatch.setattr(sampler, "first_process", lambda: False)
    sampled.answer(PARAMS, EXAMPLES, 4, 1)
    assert sampled.policy.calls[2][2]["log"].done.keys() == {1}
    sampled.forget()
    assert folder.exists()
    monkeypatch.setattr(sampler, "first_process", lambda: True)
    sampled.forget()
    assert not folder.exists()
    made().forget()
