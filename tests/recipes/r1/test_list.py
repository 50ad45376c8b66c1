"""R1's stages are one list: nothing else says their order, and a stage more is a line more."""

import ast
import re
from pathlib import Path

import pytest

import deepseek_jax
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.r1 import run as r1
from deepseek_jax.settings import build
from deepseek_jax.synthesis.rejection import read_accepted
from tests.recipes.r1.test_run import make_rules_easy, run, small_config
from tests.recipes.small import one_device

NAMES = {stage.name for stage in r1.R1}
# A second round of rejection sampling, from Dev3 and by the settings of the first: CONTRIBUTING.md's example,
# with the names that run.py has
PRINTED = re.search(
    r'`(Stage\("second_round".*?)`', (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
)
ROUND = eval(PRINTED[1], vars(r1))


def literals(path):
    """The strings of each tuple, list, set and dict that a file writes out."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = getattr(node, "elts", None) or getattr(node, "keys", None) or []
        yield (
            node.lineno if hasattr(node, "lineno") else 0,
            {part.value for part in parts if isinstance(part, ast.Constant)},
        )


def test_the_order_of_r1_is_written_once():
    """Oracle: every tuple, list, set and dict of the package: none names four of the stages."""
    files = Path(deepseek_jax.__file__).parent.rglob("*.py")
    lists = {
        f"{path.name}:{line}": found & NAMES for path in files for line, found in literals(path)
    }
    assert {where for where, found in lists.items() if len(found) > 3} == set()
    assert len(NAMES) == len(r1.R1) == 15


@pytest.fixture
def one_line_more(monkeypatch):
    after = [stage.name for stage in r1.R1].index("sft") + 1
    monkeypatch.setattr(r1, "R1", (*r1.R1[:after], ROUND, *r1.R1[after:]))


def test_a_stage_more_is_a_line_more(one_line_more):
    """Oracle: by hand: it has programs of its own, a title, a seed that no other stage has, and the others
    keep theirs.
    """
    settings, mesh = build(r1.SETTINGS, small_config(), "config"), one_device()
    job = r1.JOB(settings, mesh)
    planned = {program.name for program in driver.plan(job)}
    assert {"second_round: decode", "rejection: decode"} <= planned
    assert job.titles()["second_round"] == "accepted again"
    seeds = {stage.name: job.seed_of(stage) for stage in r1.R1}
    assert len(set(seeds.values())) == len(seeds) == 16


@pytest.mark.slow
def test_a_stage_more_runs_where_it_stands(one_line_more, tmp_path):
    """Oracle: by hand: what it accepts are answers to the questions that the first round asks; the stages
    behind it run.
    """
    with pytest.MonkeyPatch.context() as patch:
        make_rules_easy(patch)
        run(tmp_path)
    first, second = (
        {line["question"] for line in read_accepted(tmp_path / name / "accepted.jsonl")}
        for name in ("rejection", "second_round")
    )
    asked = {
        e["question"]
        for e in r1.JOB(build(r1.SETTINGS, small_config(), "config"), None)
        .task("reasoning")
        .train[:16]
    }
    assert first and second and first | second <= asked
    assert load_orbax(tmp_path / "scenarios" / "params", mesh=one_device())
