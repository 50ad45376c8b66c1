"""Scores of tasks from answers written by hand."""

import pytest

from deepseek_jax.evaluation.accuracy import mean_interval, share_interval
from deepseek_jax.evaluation.compare import NO_DIFFERENCE
from deepseek_jax.evaluation.problem_scores import compared_tasks, per_problem, task_scores


def problem(task, question, correct, agreed=True, lengths=None):
    return {
        "task": task,
        "question": question,
        "gold": "1",
        "correct": correct,
        "agreed": agreed,
        "lengths": lengths or [10] * len(correct),
        "truncated": [False] * len(correct),
    }


def test_each_task_and_all_of_them_get_their_scores():
    """Oracle: by hand: pass@1 of the sums is (1 + 2) / 8, pass@4 is two of two; pass@1 of all tasks is
    (1 + 2 + 4) / 16; the interval is that of the problems' shares.
    """
    problems = [
        problem("sum", "a", [True, False, False, False], agreed=False, lengths=[1, 2, 3, 4]),
        problem("other", "a", [True] * 4),
        problem("sum", "b", [True, False, True, False], lengths=[5, 5, 5, 6]),
        problem("other", "b", [False] * 4, agreed=False),
    ]
    scores = task_scores(problems)
    assert list(scores) == ["sum", "other", "all"]
    assert list(scores["sum"]) == ["pass@1", "pass@4", "cons@4", "length", "truncated"]
    assert scores["sum"]["pass@1"] == pytest.approx(share_interval([0.25, 0.5]))
    assert scores["sum"]["pass@4"] == share_interval([1, 1])
    assert scores["sum"]["cons@4"][0] == 0.5
    assert scores["sum"]["length"] == mean_interval([2.5, 5.25])
    assert scores["sum"]["truncated"] == share_interval([0, 0])
    assert scores["all"]["pass@1"] == pytest.approx(share_interval([0.25, 1, 0.5, 0]))
    assert scores["all"]["pass@4"][0] == 0.75


def test_a_single_task_is_not_told_twice_and_k_goes_by_fours_to_n():
    """Oracle: by hand."""
    problems = [problem("sum", question, [True] * 24) for question in "ab"]
    scores = task_scores(problems)
    assert list(scores) == ["sum"]
    names = ["pass@1", "pass@4", "pass@16", "pass@24", "cons@24", "length", "truncated"]
    assert list(scores["sum"]) == names


def test_answers_that_cannot_be_counted_have_no_consensus():
    """Oracle: by hand, of one sample too."""
    problems = [problem("essay", question, [True, False], agreed=None) for question in "ab"]
    assert "cons@2" not in task_scores(problems)["essay"]
    problems = [problem("sum", question, [True]) for question in "ab"]
    assert list(task_scores(problems)["sum"]) == ["pass@1", "length", "truncated"]


def test_two_runs_are_compared_by_question_whatever_their_order():
    """Oracle: by hand: ours has one right sample of four more on each of eight problems."""
    correct = [[i > 3, i > 4, i > 5, False] for i in range(8)]
    theirs = [problem("sum", f"q{i}", row) for i, row in enumerate(correct)]
    ours = [problem("sum", f"q{i}", [*row[:3], True]) for i, row in enumerate(correct)]
    found = compared_tasks(ours, theirs[::-1])["sum"]
    assert found["pass@1"].difference == pytest.approx((0.25, 0.25, 0.25))
    assert found["pass@1"].verdict == "better"
    assert found["cons@4"].verdict == NO_DIFFERENCE and "length" not in found


def test_runs_of_other_numbers_of_samples_share_the_smaller_ks():
    """Oracle: by hand."""
    ours = [problem("sum", question, [True] * 4) for question in "ab"]
    theirs = [problem("sum", question, [True] * 16) for question in "ab"]
    assert list(compared_tasks(ours, theirs)["sum"]) == ["pass@1", "pass@4"]


@pytest.mark.parametrize("other", ["c", None])
def test_runs_on_other_problems_are_refused(other):
    """Oracle: by hand: another question in place of b, and none."""
    ours = [problem("sum", question, [True]) for question in "ab"]
    theirs = [problem("sum", question, [True]) for question in ("a", other) if question]
    with pytest.raises(ValueError, match="not the same problems: 1 of ours and . of theirs .* 'b'"):
        compared_tasks(ours, theirs)


def test_conversations_have_the_means_of_their_counts():
    """Oracle: by hand: a reward that failed counts as 0; one that no conversation has is left out."""
    problems = [problem("sum", question, [True, False]) for question in "ab"]
    for place, each in enumerate(problems):
        each |= dict(turns=[1, 2 + place], get_reward=[0.5, None if place else 0.25])
        each |= dict(tool_errors=[None, None], truncated=[place == 1, False])
    scores = per_problem(problems)
    names = ["pass@1", "pass@2", "cons@2", "length", "truncated", "turns", "get_reward"]
    assert list(scores) == names
    assert scores["turns"].tolist() == [1.5, 2.0] and scores["get_reward"].tolist() == [0.375, 0.25]
    assert scores["truncated"].tolist() == [0, 0.5] and scores["length"].tolist() == [10, 10]
    intervals = task_scores(problems)["sum"]
    assert intervals["turns"] == mean_interval([1.5, 2.0])
    assert intervals["pass@2"] == share_interval([1, 1], 8)


def test_ks_go_by_fours_to_the_number_of_samples():
    """Oracle: by hand."""
    for n, ks in ((1, [1]), (2, [1, 2]), (4, [1, 4]), (5, [1, 4, 5]), (16, [1, 4, 16])):
        scores = per_problem([problem("sum", "a", [True] * n)])
        assert [name for name in scores if name.startswith("pass@")] == [f"pass@{k}" for k in ks]
