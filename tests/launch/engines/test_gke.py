"""What the engine for GKE asks xpk for, what it reads from Kubernetes, and xpk's own manifest."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from launch.engines import RUNNING, WAITING
from launch.engines.gke import XPK, jobset_state, workload_name
from tests.in_process import launched

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ("--engine=gke", "--cluster=pods", "--project=lab", "--zone=us-east5-a")
WORKLOAD = ("--device_type=v5litepod-16", "--slices=2", "--docker_image=gcr.io/lab/deepseek_jax")
NOTES = f"""#!{sys.executable}
import json, pathlib, sys
with open(pathlib.Path(__file__).with_name("notes"), "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder on PATH with an xpk and a kubectl that write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("xpk", "kubectl"):
        (folder / name).write_text(NOTES)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def swept(folder, *args):
    """launch/sweep.py of two seeds."""
    (folder / "two.py").write_text("def sweep(config):\n    return [{'seed': 1}, {'seed': 2}]\n")
    flags = ["--config=configs/sft_small.py", f"--sweep={folder}/two.py", f"--workdir={folder}/out"]
    with contextlib.chdir(ROOT):
        return launched("sweep", *flags, *args)


def jobset(name, **status):
    return {"metadata": {"name": name}, "status": status}


def ended(how):
    return dict(conditions=[{"type": how, "status": "True"}])


@pytest.mark.slow
def test_each_run_is_a_workload_that_restarts_when_it_was_preempted(tmp_path, commands):
    """Oracle: xpk's command line by hand, and the run's own as a user would type it in the image."""
    workloads = [workload_name(tmp_path / "out", f"seed={seed}") for seed in (1, 2)]
    sets = [jobset(workloads[0], **ended("Completed")), jobset(workloads[1], **ended("Failed"))]
    answer = f"print({json.dumps(json.dumps({'items': sets}))})\n"
    (commands / "kubectl").write_text(NOTES + answer)
    done = swept(tmp_path, *FLAGS, *WORKLOAD)
    called = [json.loads(line) for line in (commands / "notes").read_text().splitlines()]
    assert done.status == 1 and "1 of 2 runs failed: seed=2" in done.err, done.err
    created = [call for call in called if call[:2] == ["workload", "create"]]
    run = "exec python launch/train.py --config=configs/sft_small.py --config.seed=1"
    place = ["--cluster=pods", "--project=lab", "--zone=us-east5-a", "--quiet"]
    assert created[0] == [
        *("workload", "create", f"--workload={workloads[0]}"),
        f"--command={run} --workdir={tmp_path}/out/seed=1",
        *("--device-type=v5litepod-16", "--num-slices=2", "--docker-image=gcr.io/lab/deepseek_jax"),
        *place,
        *("--max-restarts=100", "--restart-on-exit-codes=75", "-tgps", "300"),
        "--ttl-seconds-after-finished=604800",
    ]
    assert ["workload", "delete", f"--workload={workloads[0]}", *place] in called


def test_the_state_of_a_jobset():
    """Oracle: by hand, after JobSet's API (jobset.x-k8s.io/v1alpha2)."""
    assert jobset_state(jobset("a")) == WAITING
    assert (
        jobset_state(jobset("a", conditions=[{"type": "Suspended", "status": "True"}])) == WAITING
    )
    assert jobset_state(jobset("a", replicatedJobsStatus=[{"active": 1}])) == RUNNING
    assert jobset_state(jobset("a", **ended("Completed"))) == 0
    assert jobset_state(jobset("a", **ended("Failed"))) == 1


def test_names_of_workloads_are_those_that_kubernetes_allows():
    """Oracle: xpk's pattern; two runs whose names begin alike have two names."""
    names = [
        workload_name(Path("out"), "optimizer.learning_rate=0.001,Seed=" + s * 90) for s in "12"
    ]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", n) and len(n) < 40 for n in names)
    assert names[0] != names[1]


def test_what_is_missing_is_one_message(tmp_path, commands):
    """Oracle: the words a reader needs; nothing is created."""
    done = swept(tmp_path, *FLAGS)
    assert done.status == 2 and done.err == "error: --engine=gke needs --device_type\n"
    done = swept(tmp_path, *FLAGS, *WORKLOAD, f"--config={ROOT}/configs/sft_small.py")
    assert done.status == 2 and "is not in the image; give a path below the" in done.err
    (commands / "xpk").unlink()
    done = swept(tmp_path, *FLAGS, *WORKLOAD)
    assert done.status == 2 and f"xpk/bin/pip install {XPK}" in done.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_command_of_xpk_without_xpk(tmp_path, monkeypatch):
    """Oracle: xpk's command line by hand, as a shell reads it; data that are not there are said. Nothing is
    made.
    """
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = swept(tmp_path, *FLAGS, *WORKLOAD, "--dry_run", "--config.data.path=no.jsonl")
    assert done.status == 2 and not (tmp_path / "out").exists()
    assert done.err.startswith("error: --sweep: seed=1: config.data.path='no.jsonl' is not")
    first, second = map(shlex.split, done.out.splitlines()[-2:])
    run = "exec python launch/train.py --config=configs/sft_small.py --config.data.path=no.jsonl"
    assert first[:3] == ["xpk", "workload", "create"] and first[4:6] == [
        f"--command={run} --config.seed=1 --workdir={tmp_path}/out/seed=1",
        "--device-type=v5litepod-16",
    ]
    assert second[3] == f"--workload={workload_name(tmp_path / 'out', 'seed=2')}"


@pytest.mark.slow
def test_xpk_makes_a_manifest_whose_pods_pass_sigterm_to_the_run(tmp_path, monkeypatch):
    """Oracle: JobSet's fields by hand; and the manifest's own shell script, run here with a python that saves
    at SIGTERM: its exit status is the run's 75.
    """
    venv.create(tmp_path / "xpk", with_pip=True)
    subprocess.run([tmp_path / "xpk" / "bin" / "pip", "install", "--quiet", XPK], check=True)
    monkeypatch.setenv("PATH", f"{tmp_path}/xpk/bin:{os.environ['PATH']}")
    done = swept(tmp_path, *FLAGS, *WORKLOAD, "--dry_run")
    assert done.status == 0, done.err
    create = shlex.split(done.out.splitlines()[-2])
    manifest = tmp_path / "seed=1.yaml"
    dry = ["--dry-run", "--skip-validation", "--no-dependency-auto-download"]
    subprocess.run([*create, *dry, f"--output-manifest-file={manifest}"], check=True)
    text = manifest.read_text()
    assert "kind: JobSet" in text and "replicas: 2" in text and "maxRestarts: 100" in text
    assert "terminationGracePeriodSeconds: 300" in text and "values: [42,75," in text
    assert "cloud.google.com/gke-tpu-topology: 4x4" in text
    assert "image: gcr.io/lab/deepseek_jax" in text
    script = re.search(r"- bash\n\s+- -c\n\s+- \|\n(.*?)\n\s+resources:", text, re.S).group(1)
    assert "(exec python launch/train.py --config=configs/sft_small.py" in script
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text(
        f"#!{sys.executable}\nimport pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "pathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )
    (folder / "python").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    pod = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path})
    until = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(timeout=30) == 75
