"""The wheel, as pip builds and installs it: what is in it, and that it trains from an empty folder."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import deepseek_jax

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(num_steps=2, prompts_per_step=8, group_size=4)
SMALL |= {
    "base.num_documents": 400,
    "base.batch_size": 8,
    "base.num_steps": 5,
    "base.optimizer.warmup_steps": 1,
    "data.num_held_out": 8,
    "rollout.max_completion_length": 12,
    "rollout.slots": 8,
}
FIELDS = [f"--config.{name}={value}" for name, value in SMALL.items()]
TRAIN = """
import json, sys
import deepseek_jax as ds
config = ds.config("grpo_small:seed=1", **json.loads(sys.argv[1]))
print("whole:", ds.train(config, "runs/grpo_small_seed=1").complete)
print("stopped:", ds.train(config, "again", stop_after=1).complete)
print("own:", ds.config("own_task").recipe)
"""
pytestmark = pytest.mark.slow


def listed(*folders):
    """What git has below these folders of the checkout, or all of it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout: building leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in listed():
        if not name.startswith("tests/") and (ROOT / name).exists():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "copy" / name)
    command = [sys.executable, "-m", "pip", "wheel", "./copy", "--no-deps", "--no-build-isolation"]
    subprocess.run(command, cwd=folder, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel, which sees the packages of this one: -> its site-packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file brings no .pth files of its own: an editable install there does not count
    (packages / "running.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return packages


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """run(program, *arguments) in one empty folder of the environment: -> what it prints."""
    empty = tmp_path_factory.mktemp("empty")

    def run(name, *arguments):
        done = subprocess.run(
            [installed.parents[2] / "bin" / name, *arguments],
            cwd=empty,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = empty
    return run


def test_the_wheel_has_every_file_that_is_read_and_no_other(wheel):
    """Oracle: git's list of the Python files; by hand, three that are read or mark the types."""
    wanted = {name for name in listed("deepseek_jax") if name.endswith(".py")}
    wanted |= {
        f"deepseek_jax/shipped/{n}" for n in listed("configs", "launch") if n.endswith(".py")
    }
    wanted |= {"deepseek_jax/py.typed"}
    wanted |= {f"deepseek_jax/reports/html_report.{kind}" for kind in ("css", "js")}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_the_page_of_the_wheel_has_what_an_index_can_show(wheel):
    """Oracle: by hand: no picture, no link into the repository, and the sections of README.md."""
    (path,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/METADATA"))
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(path))
    text = metadata.get_payload()
    assert metadata["Version"] == deepseek_jax.__version__
    assert "![" not in text and re.findall(r"\]\((?!https?:)", text) == []
    sections = re.compile("^## .*", re.M)
    assert sections.findall(text) == sections.findall((ROOT / "README.md").read_text())


def test_site_packages_gets_one_name(installed):
    """Oracle: by hand."""
    version = deepseek_jax.__version__
    names = {path.name for path in installed.iterdir()} - {"running.pth"}
    assert names == {"deepseek_jax", f"deepseek_jax-{version}.dist-info"}


def test_the_wheel_trains_from_an_empty_folder_and_measures_what_it_trained(run, installed):
    """Oracle: what the run leaves, and where; a random model of five updates is right in 0 to 100% of 4 sums,
    which a worker process grades, as it starts from the wheel.
    """
    assert run("python", "-c", "import deepseek_jax; print(deepseek_jax.__file__)").strip() == str(
        installed / "deepseek_jax" / "__init__.py"
    )
    said = run("deepseek-jax", "train", "--config=grpo_small:seed=1", *FIELDS)
    assert "complete: 4 of 4 stages" in said
    trained = run.folder / "runs" / "grpo_small_seed=1"
    assert (trained / "grpo" / "params").is_dir()
    assert (trained / "curves.png").stat().st_size > 0
    lines = [
        json.dumps(dict(question=f"What is {n} + 2?", answer=f"#### {n + 2}")) for n in range(4)
    ]
    (run.folder / "sums.jsonl").write_text("\n".join(lines))
    said = run(
        *("deepseek-jax", "evaluate", f"--checkpoint={trained}"),
        *("--data=sums.jsonl", "--instruction=", "--template={question}\n", "--samples=2"),
        *("--max_completion_length=4", "--slots=8", "--workdir=measured"),
    )
    assert "pass@1" in said and (run.folder / "measured" / "results" / "scores.json").exists()
    assert "deepseek_v3, " in run("deepseek-jax", "convert", f"--from={trained}", "--to=hf")
    # From Python: it sees the same run, and begins another
    said = run("python", "-c", TRAIN, json.dumps(SMALL))
    assert "\nwhole: True\n" in said and "\nstopped: False\n" in said and "\nown: grpo\n" in said


def test_a_sweep_of_the_wheel_starts_the_wheels_programs(run):
    """Oracle: the run's own last line in its log, and the table's score."""
    (run.folder / "one.py").write_text("def sweep(config):\n    return [{'seed': 3}]\n")
    said = run("deepseek-jax", "sweep", "--config=grpo_small", "--sweep=one.py", *FIELDS)
    assert "seed=3: complete" in said and "1 complete" in said
    log = (run.folder / "runs" / "grpo_small_one" / "seed=3.log").read_text()
    assert "complete: 4 of 4 stages" in log
    said = run("deepseek-jax", "plan", "--config=grpo_small", "--topology=h100:8")
    assert "answers: decode" in said
