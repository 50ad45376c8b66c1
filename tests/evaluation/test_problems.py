"""The problems of an evaluation, and the scores of answers to them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.evaluation import problems as module
from deepseek_jax.evaluation.problems import Rules, load_problems
from deepseek_jax.recipes.evaluate.settings import INSTRUCTION, EvaluateSettings
from deepseek_jax.rewards import Rule
from deepseek_jax.settings import build
from deepseek_jax.worlds.arithmetic.world import SUMS
from deepseek_jax.worlds.bilingual.tasks import puzzle_examples
from deepseek_jax.worlds.bilingual.world import BILINGUAL
from deepseek_jax.worlds.registry import all_rules, find_questions, question_names

QUESTIONS = [(f"What is {n} + 1?", f"{n} + 1 = {n + 1}\n#### {n + 1:,}") for n in range(1000, 1010)]


def settings(*data, **fields):
    block = dict(recipe="evaluate", checkpoint="nowhere", data=data, **fields)
    return build(EvaluateSettings, block, "config")


def problem(rule, **example):
    """A problem as load_problems has it."""
    return {"rule": rule, "example": example, **example}


@pytest.fixture
def file(tmp_path):
    """A jsonl file in GSM8K's format, of ten questions, the first one twice."""
    path = tmp_path / "sums" / "test.jsonl"
    path.parent.mkdir()
    lines = [json.dumps({"question": q, "answer": a}) for q, a in [*QUESTIONS, QUESTIONS[0]]]
    path.write_text("\n".join(lines))
    return str(path)


def test_a_file_is_a_task_whose_questions_ask_for_steps_and_a_box(file):
    """Oracle: by hand."""
    problems = load_problems(settings(file))
    assert [p["question"] for p in problems] == [question for question, _ in QUESTIONS]
    first = problems[0]
    assert (first["task"], first["answer"], first["template"]) == ("sums/test", "1001", "chat")
    assert first["asked"]["question"] == f"What is 1000 + 1?\n{INSTRUCTION}"
    plain = load_problems(settings(file, instruction=""))
    assert plain[0]["asked"]["question"] == "What is 1000 + 1?"


def test_some_of_a_file_are_the_same_ones_for_every_seed(file):
    """Oracle: two calls agree; some questions are left out, and the order is the file's."""
    chosen = [p["question"] for p in load_problems(settings(file, num_problems=4))]
    again = load_problems(settings(file, num_problems=4, seed=7, samples=2))
    assert [p["question"] for p in again] == chosen
    places = sorted(np.random.default_rng(0).permutation(10)[:4])
    assert chosen == [QUESTIONS[place][0] for place in places]
    for number in (2, 10):
        assert len(load_problems(settings(file, num_problems=number))) == number
    assert len(set(chosen)) == 4 and chosen == sorted(chosen)


def test_a_worlds_tasks_are_its_kinds_in_each_language():
    """Oracle: the world's held-out puzzles, and a count by hand: four sorts, equally many."""
    problems = load_problems(settings("bilingual_puzzles", num_problems=8))
    held_out = puzzle_examples(0, 8, held_out=True)
    assert [p["question"] for p in problems] == [e["question"] for e in held_out]
    tasks = sorted(p["task"] for p in problems)
    assert tasks == sorted(["countdown en", "countdown zh", "sum en", "sum zh"] * 2)
    assert len(load_problems(settings("arithmetic"))) == 256


def test_every_small_world_can_be_measured():
    """Oracle: the worlds' tasks and rewards."""
    assert {find_questions(name)[1].rule for name in question_names()} <= all_rules().keys()


def test_programs_are_judged_by_their_cases_and_not_told_to_box_anything(tmp_path):
    """Oracle: by hand."""
    path = tmp_path / "code.jsonl"
    case = {"question": "Print 1.", "test_cases": [{"input": "", "output": "1"}]}
    path.write_text("\n".join(json.dumps(case | {"question": f"Print {n}."}) for n in (1, 2)))
    problems = load_problems(settings(str(path)))
    assert [(p["rule"], p["asked"]["question"]) for p in problems] == [
        ("program", "Print 1."),
        ("program", "Print 2."),
    ]


def test_a_null_column_of_cases_is_no_case(tmp_path):
    """Oracle: by hand: a table in which programs and questions were merged."""
    path = tmp_path / "merged.jsonl"
    lines = [
        {"question": "Print 1.", "test_cases": [{"input": "", "output": "1"}], "answer": None},
        {"question": "2 + 3?", "test_cases": None, "answer": "5"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    problems = load_problems(settings(str(path), num_problems=2))
    assert [(p["rule"], p["answer"]) for p in problems] == [("program", ""), ("math_verify", "5")]


@pytest.mark.parametrize(
    "data, fields, words",
    [
        (
            ["arithmetics"],
            {},
            "data='arithmetics' is neither a path nor a task; did you mean arithmetic?",
        ),
        (["nowhere.jsonl"], {}, "data='nowhere.jsonl' is not a file"),
        (["FILE"], dict(num_problems=1), "num_problems=1 must be within 2..10"),
        (["FILE"], dict(num_problems=11), "num_problems=11 must be within 2..10"),
        (["FILE", "FILE"], {}, "test.jsonl' repeats the task sums/test; give it once"),
        (["bilingual_puzzles"], dict(num_problems=5), "a single problem, and an interval needs 2"),
        (["arithmetic"], dict(num_problems=100_000), "there are"),
        ([], {}, "config.data=() names no problems"),
        (["arithmetic"], dict(temperature=0.0), "config.temperature=0.0 is greedy"),
    ],
)
def test_what_cannot_be_asked_is_refused(file, data, fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        load_problems(settings(*(name.replace("FILE", file) for name in data), **fields))
    assert words in str(error.value)


def test_answers_are_judged_by_each_problems_rule_and_counted_by_value(file):
    """Oracle: by hand: 1,001 and 1001.0 and a sum that makes it are one answer, with three votes of five; a
    countdown's answer is the expression, whose value alone solves nothing.
    """
    problems = load_problems(settings(file))[:1]
    problems += [problem("puzzle_answer", question="Make 7 of 9, 4, 2.", answer="9 - 4 + 2")]
    sums = [r"\boxed{1,001}", "That makes 1001.0", "1001, no: <answer>7</answer>", "#### 7"]
    sums += [r"so \boxed{1000 + 1}"]
    countdowns = ["<answer>7</answer>", "<answer>2 + 9 - 4</answer>", "7", "2 + 9 - 4", "none"]
    with Rules(problems) as rules:
        first, second = rules.judge(problems, [sums, countdowns], [[0]] * 10)
    assert first["correct"] == [True, True, False, False, True]
    assert first["answers"] == ["1,001", "1001.0", "7", "7", "1000 + 1"]
    assert (first["majority"], first["agreed"], first["unscored"]) == ("1,001", True, 0)
    assert second["correct"] == [False, True, False, True, False]
    assert second["answers"] == ["7", "2 + 9 - 4", "7", "2 + 9 - 4", None]
    assert (second["majority"], second["agreed"]) == ("7", False)


def test_an_answer_without_a_verdict_counts_as_wrong_and_is_told(monkeypatch, capsys):
    """Oracle: by hand: a rule that fails on every text with an x."""

    def fails_on_x(completion, example):
        return 1.0 / (completion != "x")

    monkeypatch.setitem(BILINGUAL.rewards, "helpfulness", Rule(fails_on_x))
    asked = problem("helpfulness", question="q", answer="a", key="a", kind="lookup")
    with Rules([asked]) as rules:
        (judged,) = rules.judge([asked], [["y", "x"]], [[0]] * 2)
    assert judged["correct"] == [True, False] and judged["unscored"] == 1
    assert judged["majority"] is None and judged["agreed"] is None
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_completions_without_an_answer_agree_on_none_which_is_wrong():
    """Oracle: by hand."""
    asked = problem("correct", question="2 + 3", answer="5")
    with Rules([asked]) as rules:
        (judged,) = rules.judge([asked], [["what", "?"]], [[0]] * 2)
    assert judged["answers"] == [None, None]
    assert judged["majority"] is None and judged["agreed"] is False


def test_part_of_the_credit_is_not_right():
    """Oracle: by hand: an answer with its key and a word too many is helpful by two thirds."""
    asked = problem("helpfulness", question="What?", answer="cat", key="cat", kind="lookup")
    with Rules([asked]) as rules:
        (judged,) = rules.judge([asked], [["cat", "a cat"]], [[0]] * 2)
    assert judged["correct"] == [True, False]


def test_what_the_settings_say_comes_before_what_the_data_says(file):
    """Oracle: by hand: rule and template of a world, and of a file."""
    for name in ("arithmetic", file):
        own = load_problems(settings(name, num_problems=2))[0]
        fields = dict(accuracy="correct_reasoning", template="{question}!")
        given = load_problems(settings(name, num_problems=2, **fields))[0]
        assert (given["rule"], given["template"]) == ("correct_reasoning", "{question}!")
        assert given["rule"] != own["rule"] and given["template"] != own["template"]
    assert load_problems(settings("arithmetic"))[0]["template"] == SUMS.template


@pytest.mark.parametrize("subset, task", [(None, "owner/name"), ("main", "name/main")])
def test_data_on_the_hub_are_a_task_of_their_name(monkeypatch, subset, task):
    """Oracle: by hand: the last two parts of the name, without a commit."""
    found = SimpleNamespace(repo="owner/name", subset=subset)
    examples = [{"question": f"q{i}", "answer": "1"} for i in range(3)]
    monkeypatch.setattr(module, "hub_id", lambda name: found)
    monkeypatch.setattr(module, "read_questions", lambda *given: examples)
    loaded = load_problems(settings("owner/name"))
    assert {p["task"] for p in loaded} == {task} and {p["rule"] for p in loaded} == {"math_verify"}
