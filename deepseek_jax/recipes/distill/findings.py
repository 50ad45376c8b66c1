"""Compare pairs of students by their right answers to the same questions, over several runs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.evaluation.compare import NO_DIFFERENCE, Comparison, compare
from deepseek_jax.files import read_json

VERDICTS = {"better": "won", "worse": "lost", NO_DIFFERENCE: NO_DIFFERENCE}
# In a run's folder, written by recipes.distill.report
FILE = "answers.json"


class Finding(NamedTuple):
    """A comparison of two students: "ours" is the first of the pair, "theirs" the second.

    Attributes:
        title: The comparison's key in config.comparisons.
        means: Our mean score and theirs, over all questions of all runs.
        comparison: The comparison of these scores, ours minus theirs.
        by_run: The mean of ours minus theirs in each run.
        compute: Our floating-point operations divided by theirs.
        verdict: One of the values of VERDICTS.
    """

    title: str
    means: tuple[float, float]
    comparison: Comparison
    by_run: list[float]
    compute: float
    verdict: str


def findings(workdirs: list[Path]) -> list[Finding]:
    """Test config.comparisons on finished runs of recipes.distill.

    A comparison is won or lost if three things hold: the 95% interval of the differences, over the
    questions of all runs, excludes 0; the sign-flip test agrees (evaluation.compare); and the mean
    difference of every single run has the same sign. The interval covers the choice of questions;
    by_run shows how much seeds differ.

    Args:
        workdirs: The folders of the runs, which all have the same comparisons.

    Returns:
        A list of Finding, one for each comparison.

    Raises:
        ValueError: A run is not finished, or has other comparisons; the message names its folder.
    """
    runs = [_read(workdir) for workdir in workdirs]
    comparisons = runs[0]["comparisons"]
    for workdir, run in zip(workdirs, runs, strict=True):
        if run["comparisons"] != comparisons:
            raise ValueError(f"{workdir} has other config.comparisons than {workdirs[0]}")
    return [_test(title, pair, runs) for title, pair in comparisons.items()]


def findings_table(findings: list[Finding], num_runs: int) -> Table:
    """Build a rich Table of the findings over num_runs runs."""
    table = Table(
        title=f"right answers to the same held-out questions, {num_runs} run{'s' * (num_runs > 1)}",
        caption="this less that, and the difference's 95% interval. Won or lost: the interval excludes 0, "
        "the sign-flip test agrees, and so does the sign of every run. Compute: of this by that",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("this against that")
    for name in ("this", "that", "difference", "each run", "compute"):
        table.add_column(name, justify="right", no_wrap=name != "each run")
    table.add_column("this")
    for title, means, comparison, by_run, compute, verdict in findings:
        mean, low, high = (f"{value:+.1%}" for value in comparison.difference)
        difference_texts = " ".join(f"{value:+.1%}" for value in by_run)
        mean_texts = (f"{value:.1%}" for value in means)
        table.add_row(
            title,
            *mean_texts,
            f"{mean}\n{low} to {high}",
            difference_texts,
            f"{compute:.2f}",
            verdict,
        )
    return table


def as_json(findings: list[Finding]) -> list[dict]:
    """Convert findings to dicts for JSON."""
    return [
        finding._asdict() | {"comparison": finding.comparison._asdict()} for finding in findings
    ]


def _read(workdir: Path):
    path = workdir / FILE
    if not path.exists():
        raise ValueError(f"{workdir} has no {FILE}; run it to its end")
    return read_json(path)


def _test(title: str, pair: list[str], runs: list[dict]) -> Finding:
    answers_by_student = [[_answers(run, name) for run in runs] for name in pair]
    by_run = [float(np.mean(a - b)) for a, b in zip(*answers_by_student, strict=True)]
    ours, theirs = (np.concatenate(answers_by_run) for answers_by_run in answers_by_student)
    comparison = compare(ours, theirs)
    runs_agree = all(value > 0 for value in by_run) or all(value < 0 for value in by_run)
    verdict = VERDICTS[comparison.verdict if runs_agree else NO_DIFFERENCE]
    operations = [sum(run["compute"][name] for run in runs) for name in pair]
    means = float(ours.mean()), float(theirs.mean())
    return Finding(title, means, comparison, by_run, operations[0] / operations[1], verdict)


def _answers(run: dict, name: str):
    """Return a student's shares of right answers, one per question, one task after the other."""
    return np.concatenate([np.asarray(shares) for shares in run["answers"][name].values()])
