"""Two processes score together: each decodes and scores its half, and both get what one process gets."""

import pickle

import jax
import numpy as np
import pytest

from deepseek_jax.data.texts import LazyTexts, joined
from deepseek_jax.evaluation.problems import Rules
from deepseek_jax.parallel.processes import in_shares
from deepseek_jax.reinforce.scenarios import ScenarioRewards
from deepseek_jax.rewards import RULES, Rewards, Rule
from deepseek_jax.rollout.answers import completion_texts
from deepseek_jax.rollout.completions import empty_rollout
from deepseek_jax.synthesis.rejection import accepted
from tests.processes import run_two
from tests.rewards import own_rewards

PROMPT = 99
# Answers to 2 + 3, three to a prompt: the rows 0, 2, 5, 7, 8 and 10 are right, and 7 repeats row 2's text
NUMBERS = ["5", "6", "05", "4", "6", "5.0", "1", "05", "10/2", "7", "5", "none"]
TEXTS = [f"<think>2 and 3</think><answer>{number}</answer>" for number in NUMBERS]
EXAMPLE = {"question": "What is 2 + 3?", "answer": "5", "language": "en"}
EXAMPLES = [EXAMPLE | {"row": row} for row in range(len(TEXTS))]

ONE_OF_TWO = """
import pickle, sys
import jax
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from tests.rewards.test_score_together import outcomes
with open(f"{folder}/{process}", "wb") as file:
    pickle.dump(outcomes(), file)
"""


class Decoder:
    """In the place of a tokenizer: the text of completion [row, ...]; `rows` are those that were decoded."""

    def __init__(self):
        self.rows = []

    def decode(self, ids):
        if ids[0] == PROMPT:
            return "?"
        self.rows.append(int(ids[0]))
        return TEXTS[ids[0]]

    def texts(self):
        rollout = empty_rollout(len(TEXTS), 2)
        rollout.completion_ids[:, 0] = range(len(TEXTS))
        rollout.completion_mask[:, 0] = True
        return completion_texts(self, [[PROMPT]] * (len(TEXTS) // 3), rollout)


class Model:
    """A reward model that notes how many completions it is given, and breaks on one process on request."""

    def __init__(self, breaks=False):
        self.given, self.breaks = [], breaks

    def score(self, examples, completions):
        self.given.append(len(completions))
        if self.breaks and jax.process_index() == jax.process_count() - 1:
            raise OSError("the model broke")
        return [len(text) / 7 for text in completions]


class FailingVerifier:
    """Raises where it is given row 9's completion, which is in the share of the second of two."""

    def score(self, golds, completions):
        if TEXTS[9] in completions:
            raise OSError("the disk is full")
        return [1.0] * len(completions)

    def close(self):
        pass


def rules(scored):
    """RULES and more. scored: takes the rows that the reward `third` scores."""

    def third(completion, example):
        assert completion == TEXTS[example["row"]]
        scored.append(example["row"])
        return (example["row"] - 7) / 3

    def fails_at_first(completion, example):
        return "no number" if example["row"] < 3 else 0.1

    def fails_on_odd(completion, example):
        if example["row"] % 2:
            raise KeyError(example["row"])
        return 1.0

    return RULES | {
        "third": Rule(third),
        "fails_at_first": Rule(fails_at_first),
        "fails_on_odd": Rule(fails_on_odd),
        "failing_verifier": Rule(verifier=FailingVerifier),
    }


WEIGHTS = {"third": 0.3, "math_verify": 1.0, "fails_at_first": 0.7, "fails_on_odd": 0.1}


def plain(scores):
    """Scores as bytes, so that NaN equals NaN and nothing else is close enough."""
    parts = {name: part.tobytes() for name, part in scores.rewards_by_name.items()}
    return scores.total.tobytes(), parts, scores.errors, scores.messages


def message_of(call):
    with pytest.raises((OSError, RuntimeError)) as raised:
        call()
    return f"{raised.type.__name__}: {raised.value}"


def outcomes():
    """name -> (what this process gets, the rows that it decoded)."""
    found, scored = {}, []

    def note(name, call):
        decoder = Decoder()
        found[name] = call(decoder.texts()), sorted(decoder.rows)

    with Rewards(WEIGHTS, rules=rules(scored)) as rewards:
        note("rules", lambda texts: plain(rewards.score_together(EXAMPLES, texts)))
    found["scored"] = sorted(scored)
    with Rewards({f"{own_rewards.__file__}:listed": 1.0, "third": 0.5}, rules=rules([])) as rewards:
        asked = [e | {"target": "skip" if e["row"] == 3 else "a"} for e in EXAMPLES]
        ids = [[0] * (1 + row) for row in range(len(asked))]

        def of_functions(texts):
            scores = rewards.score_together(asked, texts, ids)
            return plain(scores), scores.columns, round(scores.metrics["tokens"], 6)

        note("functions", of_functions)
    model, broken = Model(), Model(breaks=True)
    rewards = Rewards({"third": 1.0, "liked": 0.5}, {"liked": model}, rules([]))
    note("model", lambda texts: plain(rewards.score_together(EXAMPLES, texts)))
    found["given"] = model.given
    for name, models in (("failing_verifier", {}), ("broken", {"broken": broken})):
        raising = Rewards({"third": 1.0, name: 1.0}, models, rules([]))
        together = raising.score_together
        note(name, lambda texts, call=together: message_of(lambda: call(EXAMPLES, texts)))
    # Three prompts to reason about, then a general one
    asked = [e | {"scenario": "general" if e["row"] > 8 else "reasoning"} for e in EXAMPLES]
    general = Rewards({"fails_on_odd": 1.0}, rules=rules([]))
    paid = ScenarioRewards({"reasoning": Rewards({"exact_answer": 1.0}), "general": general})
    note("scenarios", lambda texts: plain(paid.score_together(asked, texts)))
    problems = [EXAMPLE | {"rule": "exact_answer", "example": EXAMPLE}] * 4
    with Rules(problems) as judge:
        groups = range(0, len(TEXTS), 3)
        note(
            "judge",
            lambda texts: judge.judge(problems, [texts[i : i + 3] for i in groups], [[0]] * 12),
        )
    sift = dict(rule="exact_answer", max_per_prompt=4)
    note("accepted", lambda texts: accepted([EXAMPLE] * len(TEXTS), texts, **sift))
    return found


@pytest.mark.parametrize("reads_texts", [False, True])
def test_completions_with_owners_are_scored_as_without(reads_texts):
    """Oracle: the scores without owners. A model reads texts or not, beside a rule, which has no model."""
    model = Model()
    model.reads_texts = reads_texts
    rewards = Rewards({"third": 1.0, "liked": 0.5}, {"liked": model}, rules([]))
    wanted = rewards.score_together(EXAMPLES, TEXTS)
    found = rewards.score_together(EXAMPLES, TEXTS, owners=np.zeros(12, int))
    assert plain(found) == plain(wanted)


@pytest.fixture(scope="module")
def ours():
    """What a single process gets."""
    return outcomes()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes gets."""
    folder = tmp_path_factory.mktemp("both")
    codes, outputs = run_two(ONE_OF_TWO, folder)
    assert codes == [0, 0], outputs
    return [pickle.loads((folder / str(process)).read_bytes()) for process in range(2)]


@pytest.mark.slow
def test_two_processes_get_the_scores_of_one_bit_for_bit(ours, both):
    """Oracle: Rewards.score of the texts in a list, here; errors by hand: six odd rows, and the rows 0 and 2.

    Of the messages, cut to five, those of rows 0 to 2 of the first failing reward come from both processes.
    """
    with Rewards(WEIGHTS, rules=rules([])) as rewards:
        wanted = plain(rewards.score(EXAMPLES, TEXTS))
    assert wanted[2] == 8 and len(wanted[3]) == 5
    assert all(text in message for text, message in zip(TEXTS[:3], wanted[3][:3], strict=True))
    for found in (ours, *both):
        assert found["rules"][0] == wanted


def test_each_of_two_processes_decodes_and_scores_its_half(ours, both):
    """Oracle: the rows, by hand. A model gets all completions on each; a sieve reads all on process 0."""
    rows, halves = list(range(12)), [list(range(0, 12, 2)), list(range(1, 12, 2))]
    assert ours["rules"][1] == ours["scored"] == rows
    for found, half in zip(both, halves, strict=True):
        assert found["scored"] == half and found["given"] == [12]
        for name in ("rules", "failing_verifier", "judge"):
            assert found[name][1] == half, name
        assert found["model"][1] == rows
    # 9 completions for reasoning, of which process 0 has rows 0, 2, ..., 8; and the rows 9, 10 and 11
    assert [found["scenarios"][1] for found in both] == [[0, 2, 4, 6, 8, 9, 11], [1, 3, 5, 7, 10]]
    assert [found["accepted"][1] for found in both] == [rows, halves[1]]


def test_what_is_made_of_scores_is_that_of_one_process(ours, both):
    """Oracle: one process; and by hand, the right answers, the votes and the completions that pass."""
    judged, (kept, fates) = ours["judge"][0], ours["accepted"][0]
    assert [v["correct"] for v in judged] == [
        [row in (0, 2, 5, 7, 8, 10) for row in range(first, first + 3)] for first in (0, 3, 6, 9)
    ]
    assert [(v["majority"], v["agreed"]) for v in judged[::2]] == [("5", True), ("05", True)]
    assert kept == [0, 2, 5, 8] and fates == {"kept": 4, "repeated": 2, "wrong": 6}
    for found in both:
        for name in ("functions", "model", "scenarios", "judge", "accepted"):
            assert found[name][0] == ours[name][0], name


def test_an_exception_on_one_process_is_raised_on_both(ours, both):
    """Oracle: by hand: the exception itself where it was raised, with its message on the other."""
    for name, said in (("failing_verifier", "the disk is full"), ("broken", "the model broke")):
        own = f"OSError: {said}"
        assert ours[name][0] == both[1][name][0] == own
        assert both[0][name][0] == f"RuntimeError: process 1 failed: {own}"


def test_one_process_alone_does_all_rows_and_raises_its_own_exception():
    """Oracle: by hand."""
    assert in_shares(lambda rows: [row**2 for row in rows], 4) == [0, 1, 4, 9]
    assert in_shares(list, 0) == []
    with pytest.raises(ZeroDivisionError):
        in_shares(lambda rows: [1 // row for row in rows], 4)


class Unread:
    """A reward that knows its value without the completions, as that of an environment."""

    reads_texts = False

    def score(self, examples, completions):
        return [float(example["row"]) for example in examples]


@pytest.mark.parametrize("model, read", [(Unread(), []), (Model(), list(range(12)))])
def test_the_texts_of_owned_rows_are_gathered_for_a_model_that_reads_them(model, read):
    """Oracle: by hand: which rows are decoded, and the scores of the same model without owners."""
    decoder = Decoder()
    with Rewards({"model": 1.0}, models={"model": model}) as rewards:
        wanted = rewards.score_together(EXAMPLES, TEXTS).total
        found = rewards.score_together(EXAMPLES, decoder.texts(), None, np.zeros(12, int)).total
    np.testing.assert_array_equal(found, wanted)
    assert decoder.rows == read


def test_lazy_texts_are_read_when_they_are_asked_for():
    """Oracle: by hand."""
    read = []

    def upper(place):
        read.append(place)
        return place.upper()

    texts = LazyTexts(upper, "abcd")
    both = joined([texts[1:3], ["x"]])
    assert (len(texts), len(both), read) == (4, 3, [])
    assert texts[-1] == "D" and list(both) == ["B", "C", "x"] and read == ["d", "b", "c"]
    with pytest.raises(IndexError):
        texts[4]
