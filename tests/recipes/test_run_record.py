"""run.json: what each start of a run ran with, and for how long."""

import json
import subprocess

import jax
import pytest

import deepseek_jax
from deepseek_jax.recipes import run_record
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.run_record import RunRecord, code_version, read_run_record
from deepseek_jax.recipes.stage import Stage
from tests.recipes.small import one_device

MODELS = {"grpo": {"architecture": "deepseek_v3", "parameters": 1234567, "checkpoint": "base"}}
FIRST = {"experiment": "grpo_small", "command": "train grpo_small", "commit": "aaaa"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: its one entry is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(run_record.time, "monotonic", lambda: now[0])
    return now


def test_seconds_add_up_over_starts_and_a_start_that_differs_is_an_entry_of_its_own(
    tmp_path, clock
):
    """Oracle: by hand: two starts of one commit, the second of which was killed after a save, then another
    commit.
    """
    for seconds in (10, 20):
        record = RunRecord(tmp_path, "grpo", MODELS, FIRST)
        clock[0] += seconds
        record.save()
        # Killed: what follows the last save is lost
        clock[0] += 500
    record = RunRecord(tmp_path, "grpo", MODELS, FIRST | {"commit": "bbbb"})
    clock[0] += 60
    record.save()
    content = json.loads((tmp_path / "run.json").read_text())
    assert content == read_run_record(tmp_path)
    assert (content["stage"], content["models"]) == ("grpo", MODELS)
    starts = [(start["commit"], start["seconds"]) for start in content["starts"]]
    assert starts == [("aaaa", 30.0), ("bbbb", 60.0)]


def test_the_page_has_the_facts_of_all_starts_and_the_last_command(tmp_path, clock):
    """Oracle: by hand: a value that changed stands with its successor; the first stage that is not complete,
    with its number.
    """
    stages = [Stage("base", None), Stage("grpo", None, start="base"), Stage("end", None)]
    results = Results(None, stages, tmp_path)
    assert run_page(results, "GRPO").facts == {"state": "stage 1 of 3, base"}
    assert run_page(results, "GRPO").command is None
    for start in (FIRST, FIRST | {"command": "train --redo", "commit": "bbbb"}):
        record = RunRecord(tmp_path, "grpo", MODELS, start)
        clock[0] += 45
        record.save()
    (tmp_path / "base").mkdir()
    stage = dict(stage="base", hash="a", inputs={}, complete=True)
    (tmp_path / "base" / "stage.json").write_text(json.dumps(stage))
    page = run_page(results, "GRPO")
    date = read_run_record(tmp_path)["starts"][0]["date"]
    assert list(page.facts.items()) == [
        ("model", "deepseek_v3 with 1,234,567 parameters, from base"),
        ("experiment", "grpo_small"),
        ("commit", "aaaa, then bbbb"),
        ("date", date),
        ("time", "1.5 minutes"),
        ("state", "stage 2 of 3, grpo"),
    ]
    assert page.command == "train --redo"


def test_the_version_is_the_commit_of_the_checkout(monkeypatch):
    """Oracle: git's own words for HEAD; without a checkout, the version of the package."""
    code_version.cache_clear()
    folder = run_record.home()
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("this is no checkout")
    assert head.stdout.startswith(code_version()["commit"].removesuffix("-dirty"))
    monkeypatch.setattr(run_record, "home", lambda: folder / "launch")
    code_version.cache_clear()
    assert code_version() == {"release": deepseek_jax.__version__}
    code_version.cache_clear()


def test_a_start_has_its_versions_and_devices():
    """Oracle: by hand, of a mesh of one device."""
    start = run_record.start_facts(one_device(), {"command": "train x"})
    assert start.pop("commit", None) or start.pop("release")
    assert start.pop("python").startswith("3.")
    assert start == {"command": "train x", "jax": jax.__version__, "devices": "1 x cpu"}
