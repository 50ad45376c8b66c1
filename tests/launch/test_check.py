"""launch/train.py --check: what is well, and each kind of thing that is not."""

import jax
import numpy as np
import pytest

from deepseek_jax import progress
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.experiment import find_recipe, opened
from deepseek_jax.recipes.workdir import Claim
from deepseek_jax.settings import build
from deepseek_jax.training.run import Run
from launch import check
from launch.config_file import load_config
from tests.launch.test_train import ROOT, contents, folder, launched, tasks  # noqa: F401
from tests.recipes.small import one_device, small_config

HASTY = """
import sys
sys.path.insert(0, {root!r})
from launch import check
check.HANGS_SECONDS = 8.0
"""


def test_a_sum_along_each_axis_is_numpys(monkeypatch):
    """Oracle: numpy's sums of the devices' numbers; a device that adds nothing is named, with its sum."""
    mesh = make_mesh(fsdp=2, expert=2)
    said = check._collectives(mesh)
    assert [part.split()[0] for part in said.split("along ")[1].split(", ")] == [
        "data",
        "fsdp",
        "expert",
    ]
    monkeypatch.setattr(jax.lax, "psum", lambda x, axis_name: x)
    numbers = np.arange(8).reshape(2, 2, 2)
    wrong = f"along data has 0.0 on cpu:0 .* should be {numbers[:, 0, 0].sum()}.0"
    with pytest.raises(RuntimeError, match=wrong):
        check._collectives(mesh)


def test_a_single_process_waits_for_no_other_and_says_what_it_does(tmp_path, monkeypatch, capsys):
    """Oracle: by hand: the lines, and no folder; with several processes a limit of 0 s ends the program."""
    ends = []
    monkeypatch.setattr(check.os, "_exit", ends.append)
    monkeypatch.setattr(check, "HANGS_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.001)
    config, workdir = small_config(prompts_per_step=8), tmp_path / "runs" / "run"
    with progress.speaking():
        check.check(opened(config, workdir), config, workdir)
    lines = capsys.readouterr().out.splitlines()
    said = ("work directory and data", "data of grpo")
    assert {f"checking the {what}" for what in said} <= set(lines)
    assert "5 of 5 checks hold" in lines[-1] and not ends
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_is_well_is_told_and_nothing_is_left(folder):  # noqa: F811
    """Oracle: by hand: the devices, versions of this environment, no file; then a run."""
    args = "--config=tiny.py", "--config.mesh={'expert': 2}"
    status, out, err = launched(folder, *args, "--check")
    assert status == 0, err
    assert "devices: 1 x (8 x cpu" in out and f"jax {jax.__version__}" in out
    assert "along data" in out and "no data for 4" in out and "checks hold" in out
    assert contents(folder / "runs") == {}
    assert launched(folder, *args)[0] == 0
    # A complete run's directory is as it was
    before = contents(folder / "runs")
    assert launched(folder, *args, "--check")[0] == 0
    assert contents(folder / "runs") == before


@pytest.mark.slow
def test_two_processes_check_themselves_together(folder):  # noqa: F811
    """Oracle: by hand: sixteen devices, whose sums cross the processes; process 0 alone speaks; no file."""
    ends = ended(tasks(folder, "--config=tiny.py", "--config.mesh={'expert': 4}", "--check"))
    assert [status for status, *_ in ends] == [0, 0], ends
    (_, out, _), (_, other, _) = ends
    assert "devices: 2 x (8 x cpu" in out and "mesh data=4, expert=4" in out
    assert "along data" in out and "checks hold" in out and "well" not in other
    assert contents(folder / "runs") == {}


@pytest.mark.slow
def test_processes_of_different_versions_are_named(folder):  # noqa: F811
    """Oracle: the version that process 1 alone has; exit status 2 of both, one message."""
    record = folder / "other" / "grain-9.9.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: grain\nVersion: 9.9\n")
    elsewhere = [{}, {"PYTHONPATH": str(folder / "other")}]
    ends = ended(tasks(folder, "--config=tiny.py", "--check", environments=elsewhere))
    assert [status for status, *_ in ends] == [2, 2], ends
    assert "the version of grain must be the same everywhere" in ends[0][2]
    assert "process 1 on" in ends[0][2] and "9.9" in ends[0][2] and "error:" not in ends[1][2]


@pytest.mark.slow
def test_a_process_that_does_not_come_ends_the_check(folder):  # noqa: F811
    """Oracle: status 1 within the time that a part may take, with the part and the process."""
    text = (folder / "launch_here.py").read_text()
    root = str(check.Path(check.__file__).parents[1])
    (folder / "launch_here.py").write_text(HASTY.format(root=root) + text)
    ends = ended(tasks(folder, "--config=tiny.py", "--config.bad=data", "--check"))
    assert ends[0][0] == 1 and ends[1][0] != 0, ends
    assert "work directory and data takes more than 8 s on process 0" in ends[0][2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, words",
    [
        ("pretrain_small", "documents, and 64 held out"),
        ("sft_small", "1146 conversations, and 256 held out"),
        ("grpo_small", "1146 questions, 256 held out, 0 general ones, such as 'What is"),
        ("reward_model_small", "records, and"),
        ("judge_small", "pairs, and"),
        ("generate_small", "192 questions, such as '"),
        ("r1_small", "reasoning questions"),
        ("distill_small", "requests: 2048 texts"),
    ],
)
def test_every_recipe_reads_its_data(tmp_path, name, words):
    """Oracle: the numbers of the configs, from the README's tables, or the words alone."""
    config = load_config(str(ROOT / "configs" / f"{name}.py"))
    recipe = find_recipe(config.recipe)
    settings = build(recipe.SETTINGS, config, "config")
    run, claim = Run(one_device(), tmp_path, None), Claim([], lambda: None)
    assert words in driver.describe(recipe, settings, run, claim, tmp_path / "run")


def ended(processes):
    """(exit status, stdout, stderr) of each."""
    said = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
