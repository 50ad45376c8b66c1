"""Pairs of students compared over several runs."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import distill_study
from deepseek_jax.recipes.distill import run as distill
from deepseek_jax.recipes.distill.findings import FILE, findings
from deepseek_jax.recipes.distill.run import report_sweep
from tests.recipes.small import one_device, run_recipe

PAIRS = {"a thing": ("ours", "theirs"), "the other way": ("theirs", "ours"), "same": ("ours", "as")}
QUESTIONS = 40
ARMS = {"hard", "soft_hard", "reinforcement"}


def write_run(folder, gain, **fields):
    """A finished run, in which `ours` is right in `gain` of the questions that `theirs` is not."""
    folder.mkdir()
    theirs = np.zeros(QUESTIONS)
    ours = theirs + (np.arange(QUESTIONS) < gain * QUESTIONS)
    answers = {"ours": ours, "theirs": theirs, "as": ours[::-1]}
    answers = {name: {"sum": list(a[:10]), "other": list(a[10:])} for name, a in answers.items()}
    compute = {"ours": 3e9, "theirs": 2e9, "as": 3e9}
    run = {"answers": answers, "compute": compute, "comparisons": PAIRS} | fields
    (folder / FILE).write_text(json.dumps(run))
    return folder


def test_a_difference_in_every_run_is_won_or_lost_and_else_none_is_shown(tmp_path):
    """Oracle: by hand: a gain of 0.5, 0.4 and 0.6 in three runs is 0.5 of all their questions."""
    folders = [write_run(tmp_path / f"{i}", gain) for i, gain in enumerate((0.5, 0.4, 0.6))]
    won, lost, same = findings(folders)
    assert (won.verdict, lost.verdict, same.verdict) == ("won", "lost", "no difference shown")
    np.testing.assert_allclose(won.by_run, [0.5, 0.4, 0.6])
    np.testing.assert_allclose(won.comparison.difference[0], 0.5)
    np.testing.assert_allclose([*won.means, won.compute], [0.5, 0.0, 1.5])


def test_one_run_that_says_otherwise_leaves_it_open(tmp_path):
    """Oracle: by hand: two gains of 0.9 and one of 0 are 0.6 of all, and not every run's."""
    folders = [write_run(tmp_path / f"{i}", gain) for i, gain in enumerate((0.9, 0.9, 0.0))]
    found = findings(folders)[0]
    assert found.comparison.verdict == "better" and found.verdict == "no difference shown"


def test_what_is_not_finished_or_compared_otherwise_is_named(tmp_path):
    """Oracle: the words a reader needs."""
    first = write_run(tmp_path / "a", 0.5)
    with pytest.raises(ValueError, match="b has no answers.json; run it to its end"):
        findings([first, tmp_path / "b"])
    other = write_run(tmp_path / "c", 0.5, comparisons={})
    with pytest.raises(ValueError, match="c has other config.comparisons"):
        findings([first, other])


def test_the_report_is_printed_and_left_in_files(tmp_path, capsys):
    """Oracle: the findings themselves."""
    report_sweep(tmp_path, [write_run(tmp_path / "a", 0.5)])
    text = (tmp_path / "findings.txt").read_text()
    assert text == capsys.readouterr().out and "won" in text and "lost" in text
    assert json.loads((tmp_path / "findings.json").read_text())[0]["verdict"] == "won"


@pytest.mark.slow
def test_the_study_runs_and_tells_what_it_found(tmp_path, capsys):
    """Oracle: its config: every arm is measured on the same questions, and every comparison has a row. Two
    arms and reinforcement run here; the other arms are variants of the same recipe.
    """
    config = distill_study.get_config()
    for name in ("features", "on_policy", "top_8", "top_32"):
        del config.students[name]
    pairs = {title: pair for title, pair in config.comparisons.items() if set(pair) <= ARMS}
    config.comparisons = ConfigDict(pairs)
    config.teacher.base.update(dict(num_documents=400, num_steps=4, batch_size=8))
    config.teacher.base.optimizer.warmup_steps = 1
    config.teacher.fine_tune.update(dict(num_steps=6, eval_every=5))
    config.starts.qwen.base.update(dict(num_documents=400, num_steps=4, batch_size=8))
    config.starts.qwen.base.optimizer.warmup_steps = 1
    with config.ignore_type():
        config.text = None  # such a teacher is never right
    for student in config.students.values():
        student.update(dict(num_steps=2, batch_size=4, eval_every=2, log_every=1))
        student.optimizer.warmup_steps = 1
    reinforcement = config.reinforced.reinforcement
    reinforcement.update(dict(num_steps=1, prompts_per_step=2, group_size=4, eval_every=1))
    reinforcement.rollout.max_completion_length = 8
    config.evaluation.update(dict(num_questions=4, samples=1, max_completion_length=8))
    mesh = one_device()
    with jax.set_mesh(mesh):
        run_recipe(distill, config, tmp_path, mesh=mesh)
    run = json.loads((tmp_path / FILE).read_text())
    policies = {"teacher", "start qwen", *config.students, "reinforcement"}
    assert set(run["answers"]) == policies
    assert all(list(map(len, a.values())) == [4, 4] for a in run["answers"].values())
    assert all(operations > 0 for operations in run["compute"].values())
    told = [finding["title"] for finding in json.loads((tmp_path / "findings.json").read_text())]
    assert told == list(config.comparisons) and "no difference shown" in capsys.readouterr().out
