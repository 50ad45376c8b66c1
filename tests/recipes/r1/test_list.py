"""R1's stages are one list: nothing else says their order, and a stage more is an entry more."""

import ast
import re
import types
from pathlib import Path

import pytest

import deepseek_jax
from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.r1 import run as r1
from deepseek_jax.recipes.results import Results
from deepseek_jax.settings import build
from deepseek_jax.synthesis.rejection import read_accepted
from tests.recipes.r1.test_run import EVERY, NAMES, make_rules_easy, small_config
from tests.recipes.small import one_device, run_recipe


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
        f"{path.name}:{line}": found & set(NAMES)
        for path in files
        for line, found in literals(path)
    }
    assert {where for where, found in lists.items() if len(found) > 3} == set()
    assert len(set(NAMES)) == len(NAMES) == 15


def with_an_entry_more():
    """The module r1.run with CONTRIBUTING.md's example, a second round of rejection sampling from Dev3 by the
    settings of the first, in its list after the stage "sft".
    """
    guide = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
    entry = re.search(r'```python\n(Accept\(\s*"second_round".*?)```', guide, re.DOTALL)[1]
    source = Path(r1.__file__).read_text()
    (sft,) = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node).startswith("Tune('sft',")
    )
    lines = source.splitlines()
    lines.insert(sft.end_lineno, f"{entry.rstrip()},")
    module = types.ModuleType("r1_with_an_entry_more")
    exec("\n".join(lines), vars(module))
    return module


def test_a_stage_more_is_an_entry_more():
    """Oracle: by hand: it stands where its entry does, has programs of its own and a name on the page, draws
    by a seed that no other stage has, and nothing else of the list changes: the run is still for its last
    policy.
    """
    longer, settings = with_an_entry_more(), build(r1.SETTINGS, small_config("last=both"), "config")
    stages = longer.stages(settings)
    names = [stage.name for stage in stages]
    assert names[names.index("second_round") - 2 :][:3] == ["sft", "measured/sft", "second_round"]
    names.remove("second_round")
    assert names == [stage.name for stage in EVERY]
    planned = {program.name: program for program in driver.plan(longer, settings, one_device())}
    own, first = (planned[f"{name}: decode"] for name in ("second_round", "rejection"))
    assert own.path == first.path == "rejection"
    assert Results(settings, stages, Path()).titles()["second_round"] == "accepted again"
    seeds = {stage.name: stage.seed for stage in stages if not stage.measures}
    assert len(set(seeds.values())) == len(seeds) == 16
    of_r1 = {stage.name: stage.seed for stage in r1.stages(settings)}
    assert all(of_r1[name] == seeds[name] for name in NAMES)
    alone = build(r1.SETTINGS, small_config(), "config")
    assert driver.left_by(longer.stages(alone)) == driver.left_by(r1.stages(alone)) == "scenarios"


def test_each_stage_says_in_a_sentence_what_to_expect_of_it():
    """Oracle: by hand: one sentence that fits one line of 80 columns."""
    for stage in EVERY:
        assert re.fullmatch(r"Expect [^.]+\.", stage.expect), stage.name
        assert len(stage.expect) <= 78


@pytest.mark.slow
def test_a_stage_more_runs_where_it_stands(tmp_path):
    """Oracle: by hand: what it accepts are answers to the questions that the first round asks; the stages
    behind it run.
    """
    config = small_config()
    with pytest.MonkeyPatch.context() as patch:
        make_rules_easy(patch)
        run_recipe(with_an_entry_more(), config, tmp_path)
    first, second = (
        {line["question"] for line in read_accepted(tmp_path / name / "accepted.jsonl")}
        for name in ("rejection", "second_round")
    )
    data = r1.WorldData.of(build(r1.SETTINGS, config, "config"))
    asked = {e["question"] for e in data.tasks["reasoning"].train[:16]}
    assert first and second and first | second <= asked
    assert load_orbax(tmp_path / "scenarios" / "params", mesh=one_device())
