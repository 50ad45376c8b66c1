"""Test the paper's claims (arXiv:2501.12948) on runs of R1 in miniature with several seeds.

A claim says that one score exceeds another by more than a margin, prompt by prompt, on the same
held-out prompts. The margins were set before anything was measured: "far" is 20 points, "poor" 10
points below a single language; "at little cost" allows a loss of 5 points, "at least as well" of 2.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from deepseek_jax.evaluation.compare import NO_DIFFERENCE, Comparison, compare
from deepseek_jax.files import read_json
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.r1.scores import FORMS
from deepseek_jax.recipes.r1.settings import LAST_STAGES

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced at this scale"
HIGHER, LOWER = "higher", "lower"
HEADS = ("finding", "this", "that", "difference", "margin", "each run", "verdict")
# In columns
TABLE_WIDTH = 130
# A claim may have this in place of (stage, score): every prompt scores 1
WHOLE = 1.0


class Claim(NamedTuple):
    """A claim that `ours` is above `theirs` by more than a margin.

    Attributes:
        text: The claim in words.
        ours, theirs: (stage, score), or WHOLE.
        margin: The margin, in the units of the score.
        beside: True to compare the two forms of the last stage; no paper claims which is higher.
    """

    text: str
    ours: tuple[str, str] | float
    theirs: tuple[str, str] | float
    margin: float = 0.0
    beside: bool = False

    @property
    def scored(self) -> list[tuple[str, str]]:
        """The (stage, score) of ours and theirs; WHOLE is left out."""
        return [side for side in (self.ours, self.theirs) if isinstance(side, tuple)]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "R1-Zero solves far more than its base, without fine-tuning",
        ("zero", "pass@1"),
        ("base", "pass@1"),
        0.20,
    ),
    Claim("its responses get longer (tokens)", ("zero", "length"), ("base", "length")),
    Claim("its language consistency is poor", WHOLE, ("zero", "language"), 0.10),
    Claim(
        "cold start and consistency reward repair that (Dev2)",
        ("reasoning", "language"),
        ("zero", "language"),
    ),
    Claim("at little cost (Dev2)", ("reasoning", "pass@1"), ("zero", "pass@1"), -0.05),
    Claim(
        "R1 reasons at least as well as R1-Zero",
        ("scenarios", "pass@1"),
        ("zero", "pass@1"),
        -0.02,
    ),
    Claim(
        "R1 is far more helpful than R1-Zero",
        ("scenarios", "helpful"),
        ("zero", "helpful"),
        0.20,
    ),
    Claim("its last stage adds to that (over Dev3)", ("scenarios", "helpful"), ("sft", "helpful")),
    Claim("R1-Zero: cons@k exceeds pass@1", ("zero", "cons@k"), ("zero", "pass@1")),
    Claim("R1: cons@k exceeds pass@1", ("scenarios", "cons@k"), ("scenarios", "pass@1")),
)
# Score -> its name in claims that compare the two forms of the last stage
SCORED = {
    "helpful": "helpful answers",
    "harmless": "harmless answers",
    "pass@1": "right answers, pass@1",
    "cons@k": "right answers, cons@k",
    "language": "language consistency",
    "format": "format",
    "length": "length (tokens)",
}


def claims_of(last: list[str]) -> tuple[Claim, ...]:
    """Return the claims about runs with some of LAST_STAGES.

    They are the paper's claims about each of these last stages. For runs with both, they are also
    comparisons of the two.

    Args:
        last: The names of these last stages.
    """
    scenarios, distilled = LAST_STAGES
    claims = CLAIMS if scenarios in last else ()
    if distilled in last:
        distilled_claims = [_about(distilled, claim) for claim in CLAIMS]
        claims += tuple(claim for claim in distilled_claims if claim not in claims)
    if len(last) > 1:
        claims += tuple(
            Claim(
                f"{text}: distilled, beside reinforced",
                (distilled, score),
                (scenarios, score),
                beside=True,
            )
            for score, text in SCORED.items()
        )
    return claims


def _about(stage: str, claim: Claim) -> Claim:
    """Turn a claim about R1 into a claim about the R1 of a last stage; return others unchanged."""
    sides = [
        (stage, side[1]) if isinstance(side, tuple) and side[0] in LAST_STAGES else side
        for side in claim[1:3]
    ]
    if sides == list(claim[1:3]):
        return claim
    text = claim.text.removeprefix("R1: ").removeprefix("R1 ")
    return claim._replace(text=f"R1, distilled: {text}", ours=sides[0], theirs=sides[1])


class Finding(NamedTuple):
    """A tested claim.

    Attributes:
        means: The means of ours and theirs, over the prompts of all runs.
        comparison: The comparison of ours with theirs over these prompts, without the margin.
        by_run: The mean difference in each run.
    """

    claim: Claim
    means: tuple[float, float]
    comparison: Comparison
    by_run: list[float]
    reproduced: bool


def findings(workdirs: list[Path], claims: tuple[Claim, ...] = CLAIMS) -> list[Finding]:
    """Test the claims on finished runs of recipes.r1.

    A claim is reproduced if three things hold: the 95% interval of the differences, over the
    prompts of all runs, is above the margin; the sign-flip test agrees (evaluation.compare); and
    every single run's mean difference is above the margin. The interval covers the choice of
    prompts; by_run shows how much seeds differ.

    Args:
        workdirs: The folders of the runs.
        claims: The claims. A claim about a score that some run's world does not have is skipped.

    Raises:
        ValueError: A run is not finished; the message names its folder.
    """
    runs = [_values(workdir, claims) for workdir in workdirs]
    return [_test(claim, runs) for claim in claims if all(_is_about(claim, run) for run in runs)]


def report_sweep(folder: Path, workdirs: list[Path], last: list[str] | None = None):
    """Print the findings over finished runs, and write them to findings.txt and findings.json.

    Args:
        folder: The folder for both files.
        workdirs: The folders of the runs.
        last: The names in LAST_STAGES that the runs have; None to find them in the runs' files.

    Raises:
        ValueError: As `findings` does.
    """
    if not first_process():
        return
    tested_claims = findings(workdirs, claims_of(last or _last_stages(workdirs[0])))
    k = read_json(workdirs[0] / "measured" / "base" / "scores.json")["k"]
    rows = [_cells(finding, k) for finding in tested_claims]
    content = {
        "heads": HEADS,
        "rows": rows,
        "findings": [_as_json(finding) for finding in tested_claims],
    }
    (folder / "findings.json").write_text(json.dumps(content, indent=1) + "\n")
    table = _table(f"findings of {len(workdirs)} run{'s' if len(workdirs) > 1 else ''}", rows)
    Console(width=TABLE_WIDTH).print(table)
    with (folder / "findings.txt").open("w") as file:
        Console(width=TABLE_WIDTH, file=file).print(table)


def _as_json(finding: Finding):
    claim, means, comparison, by_run, reproduced = finding
    numbers = dict(means=means, difference=comparison.difference, p_value=comparison.p_value)
    outcome = {"verdict": _verdict(finding)} if claim.beside else {"reproduced": reproduced}
    return claim._asdict() | numbers | {"by_run": by_run} | outcome


def _table(title, rows):
    table = Table(
        title=title,
        caption="held-out prompts of every run: this, less that, and the difference's 95% interval. "
        "Reproduced: the interval is above the margin, and so is every run's own difference. Higher, lower: "
        "the interval is on one side of 0, and so is every run's",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for name in HEADS:
        is_text = name in ("finding", "each run", "verdict")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*row)
    return table


def _last_stages(workdir: Path):
    """Return the names in LAST_STAGES that a run's config has, or else that it has measured."""
    config_file = workdir / "config.json"
    if config_file.exists():
        config = read_json(config_file)
        return [name for name in LAST_STAGES if config.get(name)]
    return [n for n in LAST_STAGES if (workdir / "measured" / n).exists()] or [LAST_STAGES[0]]


def _values(workdir: Path, claims: tuple[Claim, ...]):
    """Return {stage: {score: float64[p]}} of a finished run.

    Raises:
        ValueError: The run has not measured a stage of the claims.
    """
    files = sorted(workdir.glob("measured/*/scores.json"))
    values = {file.parent.name: read_json(file)["values"] for file in files}
    claimed_stages = {stage for claim in claims for stage, _ in claim.scored}
    if missing_stages := claimed_stages - set(values):
        raise ValueError(
            f"{workdir} has not measured {', '.join(sorted(missing_stages))}; run it to its end"
        )
    return {
        stage: {name: np.array(numbers, np.float64) for name, numbers in scores.items()}
        for stage, scores in values.items()
    }


def _is_about(claim: Claim, run: dict):
    """Return True if a run has the scores that a claim compares."""
    return all(score in run[stage] for stage, score in claim.scored)


def _test(claim: Claim, runs: list[dict]) -> Finding:
    pairs = [_pair(claim, run) for run in runs]
    # The interval pools the prompts of all runs; by_run prevents one run from deciding for the rest
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    by_run = [float(np.mean(a - b)) for a, b in pairs]
    # With the margin subtracted, "better" means better by more than the margin
    is_better = compare(ours - claim.margin, theirs).verdict == "better"
    reproduced = is_better and all(mean > claim.margin for mean in by_run)
    means = float(ours.mean()), float(theirs.mean())
    # The table shows the difference itself: the margin is not subtracted
    return Finding(claim, means, compare(ours, theirs), by_run, reproduced)


def _pair(claim: Claim, run: dict):
    """Return [ours, theirs], float64[p] each."""
    sides = [run[side[0]][side[1]] if isinstance(side, tuple) else None for side in claim[1:3]]
    known_values = next(side for side in sides if side is not None)
    return [np.full_like(known_values, WHOLE) if side is None else side for side in sides]


def _verdict(finding: Finding):
    """Return the verdict in words.

    For the two forms of the last stage, it says which is higher in every run and beyond the noise.
    """
    claim, _, comparison, by_run, reproduced = finding
    if not claim.beside:
        return REPRODUCED if reproduced else NOT_REPRODUCED
    if comparison.verdict == "better" and min(by_run) > 0:
        return HIGHER
    return LOWER if comparison.verdict == "worse" and max(by_run) < 0 else NO_DIFFERENCE


def _cells(finding: Finding, k: int):
    """Return a finding's row of the table, as strings."""
    claim, means, comparison, by_run, _ = finding
    _, score = claim.scored[0]
    form = FORMS[score]
    mean, low, high = (format(value, "+" + form) for value in comparison.difference)
    return (
        claim.text.replace("@k", f"@{k}"),
        *(format(value, form) for value in means),
        f"{mean}\n{low} to {high}",
        format(claim.margin, "+" + form) if claim.margin else "0",
        " ".join(format(value, "+" + form) for value in by_run),
        _verdict(finding),
    )
