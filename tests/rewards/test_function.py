"""Rewards by file: in our form and in TRL's, in workers, and each mistake by its message."""

import json
import os
import sys

import numpy as np
import pytest

from deepseek_jax.rewards import Rewards, function
from tests import warm
from tests.reliability.goods import goods
from tests.rewards import own_rewards
from tests.trl_config import grpo_config

FILE = own_rewards.__file__
EXAMPLES = [
    {"question": "2 + 3?", "answer": "5", "target": "a"},
    {"question": "2 + 4?", "answer": "6", "target": "skip"},
]
IDS = [[1, 2], [3]]


def rewards(*names, **more):
    return Rewards({f"{FILE}:{name}": 1.0 for name in names} | more)


def test_a_function_of_our_form_gets_a_completion_and_its_example():
    """Oracle: the functions, called here."""
    with rewards("brief", "right") as own:
        scores = own.score(EXAMPLES, ["5", "seven"])
    calls = zip(["5", "seven"], EXAMPLES, strict=True)
    wanted = [own_rewards.brief(*call) + own_rewards.right(*call) for call in calls]
    np.testing.assert_array_equal(scores.total, np.float32(wanted))


def test_a_name_may_be_a_modules_and_stand_beside_rules():
    """Oracle: by hand."""
    with Rewards({"tests.rewards.own_rewards:brief": 0.5, "correct": 1.0}) as own:
        scores = own.score(EXAMPLES, ["5", "seven"])
    np.testing.assert_array_equal(scores.total, np.float32([1.5, 0]))


def test_none_is_not_scored_and_the_other_rewards_count_alone():
    """Oracle: by hand; a completion that none scores leaves its group, and is said."""
    examples = [EXAMPLES[0], EXAMPLES[1] | {"unsure": True}]
    with rewards("right", "brief") as own:
        np.testing.assert_array_equal(own.score(examples, ["5", "6"]).total, np.float32([2, 1]))
    with rewards("right") as own:
        scores = own.score(examples, ["5", "6"])
    np.testing.assert_array_equal(scores.total, np.float32([1, np.nan]))
    assert scores.messages == ["no reward scores '6' for '2 + 4?'."] and scores.errors == 1


def test_trls_form_gets_lists_columns_and_both_logs():
    """Oracle: by hand, for texts and for a chat."""
    with rewards("listed") as own:
        scores = own.score(EXAMPLES, ["fine", "no"], IDS)
        chat = EXAMPLES[0] | {"messages": [{"role": "user", "content": "Hi"}]}
        chatted = own.score([chat], ["fine"], IDS[:1])
    np.testing.assert_array_equal(scores.total, np.float32([2.4, np.nan]))
    assert scores.columns == {"asked": ["2 + 3?", "2 + 4?"]} and scores.metrics == {"tokens": 1.5}
    assert chatted.columns == {"asked": ["Hi"]} and chatted.total[0] == np.float32(2.4)


def test_one_function_scores_alike_in_trls_trainer_and_here(tmp_path):
    """Oracle: TRL's GRPOTrainer, which takes one step on chats with the same function: its rewards, and the
    columns that it passed.
    """
    import datasets
    import transformers
    import trl

    goods(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [
        {"prompt": [{"role": "user", "content": e["question"]}], "target": e["target"], "level": i}
        for i, e in enumerate(EXAMPLES)
    ]
    scored = []

    def passed_on(**given):
        values = own_rewards.listed(**given)
        scored.append((given, values))
        return values

    args = grpo_config(tmp_path / "out", max_completion_length=4, max_steps=1)
    trl.GRPOTrainer(
        model=str(tmp_path / "model"),
        args=args,
        reward_funcs=passed_on,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    ).train()
    given, values = scored[0]
    theirs = own_rewards.CALLS[-1]

    examples = [
        {"question": p[-1]["content"], "messages": p, "target": target, "level": level}
        for p, target, level in zip(given["prompts"], given["target"], given["level"], strict=True)
    ]
    texts = [completion[0]["content"] for completion in given["completions"]]
    with rewards("listed") as own:
        scores = own.score(examples, texts, given["completion_ids"])
    np.testing.assert_array_equal(
        scores.total, np.float32([np.nan if v is None else v for v in values])
    )
    assert theirs["own"] == ["level"] and len(texts) == 4


@pytest.mark.parametrize(
    "name, words",
    [
        ("nothing", "own_rewards.py has no function nothing; it has brief, right, listed"),
        ("a_text", "returned 'good'; return a finite number, or None for not scored; it was tried"),
        ("too_few", "returned 1 values for 2 completions; return one for each"),
        ("texts", "returned 'good'; return a finite number"),
        ("waits", "is async, which is not supported"),
        ("of_trls_trainer", "takes trainer_state, the state of TRL's trainer"),
        ("of_nobody", "takes completion; define it as NAME(completion, example), or in TRL's form"),
        ("raises", "own_rewards.py, line 55: KeyError: 'oh'; it was tried on the questions' own"),
        ("leaves", "it ended its process, or took more than 60 s"),
    ],
)
def test_a_mistake_is_named_before_a_run_starts(name, words):
    """Oracle: the message."""
    with pytest.raises(ValueError) as error:
        with rewards(name) as own:
            own.check(EXAMPLES)
    assert str(error.value).startswith(f"{FILE}:{name}: ") and words in str(error.value)


def test_a_column_that_is_missing_is_named_with_its_question():
    """Oracle: the message."""
    with rewards("listed") as own, pytest.raises(ValueError) as error:
        own.check([EXAMPLES[0], {"question": "2 + 9?", "answer": "11"}])
    assert "takes 'target', which the question '2 + 9?' lacks; it has question" in str(error.value)


def test_an_unknown_name_lists_what_there_is_and_how_to_bring_one():
    """Oracle: the message."""
    with pytest.raises(ValueError) as error:
        Rewards({"corect": 1.0})
    assert "did you mean correct?" in str(error.value) and "FILE.py:NAME" in str(error.value)


def test_a_function_that_fails_on_one_completion_leaves_the_others_their_scores():
    """Oracle: by hand."""
    with rewards("raises_on_nine") as own:
        scores = own.score(EXAMPLES, ["123456789", "12345678"])
    np.testing.assert_array_equal(scores.total, np.float32([np.nan, -1]))
    assert "own_rewards.py, line 63: ZeroDivisionError" in scores.messages[0]


def test_a_function_is_a_share_where_its_values_were_when_it_was_tried():
    """Oracle: by hand: brief is 0 or 1 on the questions' own answers, right not scored, listed 1 and more."""
    names = {name: f"{FILE}:{name}" for name in ("brief", "right", "listed")}
    examples = [dict(question="1?", answer="1", target="x", unsure=True)] * 2
    for name, is_share in (("brief", True), ("listed", False)):
        with Rewards({names[name]: 1.0}) as own:
            assert own.best_share() is None
            own.check(examples)
            assert own.best_share() == (names[name] if is_share else None)
    for name, best in (("brief", names["brief"]), ("right", "correct")):
        with Rewards({names[name]: 2.0, "correct": 1.0}) as own:
            own.check(examples)
            assert own.best_share() == best


def test_functions_run_in_processes_of_their_own(tmp_path):
    """Oracle: the process that the function notes; this one has not imported the file again."""
    before = set(sys.modules)
    with rewards("notes_itself") as own:
        own.score([EXAMPLES[0] | {"file": str(tmp_path / "noted")}], ["5"])
    pid, completion = json.loads((tmp_path / "noted").read_text())
    assert pid != os.getpid() and completion == "5"
    assert not any("own_rewards" in name for name in set(sys.modules) - before)


def test_a_function_stands_for_its_name():
    """Oracle: the same functions by name."""
    functions = own_rewards.brief, own_rewards.right
    with Rewards(dict.fromkeys(functions, 1.0)) as own:
        given = own.score(EXAMPLES, ["5", "seven"])
    with rewards("brief", "right") as own:
        np.testing.assert_array_equal(given.total, own.score(EXAMPLES, ["5", "seven"]).total)
    assert list(given.rewards_by_name) == [
        f"tests.rewards.own_rewards:{f.__name__}" for f in functions
    ]


SCRIPT = """
import deepseek_jax as ds

def brief(completion, example):
    return float(len(completion) < 9)

"""
SCORES = """
    with ds.Rewards({brief: 1.0}) as rewards:
        print(rewards.score([{"question": "1?"}], ["short"]).total.tolist())
"""
TRAINS = 'ds.train(ds.config("grpo_small", rewards={brief: 1.0}, accuracy=brief), "run")\n'
REFUSED = (
    "ValueError: {0}script.py:brief: script.py cannot be imported: script.py, line {1}: ValueError: "
    "{2} while it is imported for a function in it; put the function in a file of its own, or "
    'that call under `if __name__ == "__main__":`\n'
)


@pytest.mark.parametrize(
    "more, said",
    [
        (f'if __name__ == "__main__":{SCORES}', "[1.0]\n"),
        (
            f"if True:{SCORES}",
            REFUSED.format("", 8, "script.py:brief: script.py starts worker processes"),
        ),
        pytest.param(
            TRAINS,
            REFUSED.format("config.rewards.", 7, "script.py trains"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a main block", "scores without one", "trains without one"],
)
def test_a_function_of_the_script_itself_needs_a_main_block(more, said, tmp_path):
    """Oracle: by hand: the score, or the last line of the error."""
    (tmp_path / "script.py").write_text(SCRIPT + more)
    done = warm.run("script.py", cwd=tmp_path)
    assert (done.stdout + done.stderr).endswith(said)


@pytest.mark.parametrize(
    "values, others, alike",
    [
        ([0.0, 0.0], [0.0, 0.0], True),
        ([None], [None], True),
        ([None], [0.0], False),
        ([1.0, 2.0], [1.015, 2.0], True),
        ([1.0, 2.0], [1.03, 2.0], False),
        ([-9.0, 1.0], [-9.0, 1.08], True),
    ],
)
def test_scores_are_alike_but_for_rounding(values, others, alike):
    """Oracle: by hand: rounding is a hundredth of the largest number in size, and none where all are 0."""
    assert function._alike(values, others) == alike
