"""The engine for Google Kubernetes Engine: each run is a workload of xpk.

xpk is Google's tool for TPU clusters. It pins packages that do not fit ours, so it is called as a
program in a separate environment. Kueue and JobSet do the queueing, the placement and the restarts.
The work directory must have the same path on this machine and in the pods, for example on Filestore
or a mounted bucket.
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from absl import flags

from deepseek_jax.programs import given_file, home, is_name
from launch.engines import RUNNING, STOPPED, WAITING, Job

XPK = "xpk==1.16.0"
# How often a run may be preempted, how long a pod has to save, and how long GKE remembers a
# workload that has ended
MAX_RESTARTS, SAVE_SECONDS, REMEMBER_SECONDS = 100, 300, 7 * 24 * 3600
# xpk cannot submit without these flags
REQUIRED = "cluster", "device_type", "docker_image"

flags.disclaim_key_flags()


def define_flags():
    """Define the flags of a workload."""
    flags.DEFINE_string("cluster", None, "GKE: the cluster.")
    flags.DEFINE_string("project", None, "GKE: the project; default gcloud's.")
    flags.DEFINE_string("zone", None, "GKE: the zone; default gcloud's.")
    flags.DEFINE_string("device_type", None, "GKE: the devices of a slice, as in v5litepod-16.")
    flags.DEFINE_integer("slices", 1, "GKE: the slices of a run.", lower_bound=1)
    flags.DEFINE_string("docker_image", None, "GKE: the image; see launch/Dockerfile.")
    flags.DEFINE_string("storage", None, "GKE: the storage of xpk that holds the work directory.")


class Gke:
    """The engine of --engine=gke. An id is the name of a workload.

    Raises:
        ValueError: A flag is missing, or the image does not have the config.
    """

    name, max_jobs = "gke", None
    takes_all, survives = False, True
    poll_seconds, settle_seconds = 15.0, 0.0
    output = "kubectl logs --selector=xpk.google.com/workload={id} shows its output"

    def __init__(self, folder: Path):
        self.folder = folder
        # {name: state} as GKE last answered; None before its first answer
        self._last: dict[str, str | int] | None = None
        missing_flags = [name for name in REQUIRED if flags.FLAGS[name].value is None]
        if missing_flags:
            raise ValueError(f"--engine=gke needs --{missing_flags[0]}")
        config_name = flags.FLAGS.config.partition(":")[0]
        config = Path(given_file(config_name, "--config"))
        if not is_name(config_name) and (config.is_absolute() or not (home() / config).is_file()):
            raise ValueError(
                f"--engine=gke: --config={config} is not in the image; give a path below the checkout, as in "
                "configs/NAME.py, or NAME alone"
            )

    def check_installed(self):
        """Raise ValueError, with what to do, if xpk or kubectl is missing."""
        if shutil.which("xpk") is None:
            raise ValueError(
                "--engine=gke needs xpk on PATH, in an environment of its own: "
                f"python -m venv xpk && xpk/bin/pip install {XPK}"
            )
        if shutil.which("kubectl") is None:
            raise ValueError("--engine=gke needs kubectl on PATH, which xpk calls too")

    def describe(self, jobs: list[Job]):
        """Return the xpk commands of the runs, one in each line."""
        commands = (create_command(workload_name(self.folder, job.name), job) for job in jobs)
        return "\n".join(map(shlex.join, commands))

    def submit(self, jobs: list[Job]):
        """Create a workload for each job, and return their names."""
        return [self._create(job) for job in jobs]

    def _create(self, job):
        name = workload_name(self.folder, job.name)
        if name in (self._last or {}):
            # The workload has ended, and GKE still has its name
            _called(delete_command(name))
        _called(create_command(name, job))
        return name

    def state(self, ids: list[str]):
        """Return {id: WAITING, RUNNING, 0 or 1} for the workloads that GKE remembers."""
        try:
            listing = _called(["kubectl", "get", "jobsets", "--output=json"])
        except ValueError:
            # After a first answer, a failure comes from the network, and the last answer still
            # holds
            if self._last is None:
                raise
        else:
            jobsets = {item["metadata"]["name"]: item for item in json.loads(listing)["items"]}
            self._last = {name: jobset_state(jobset) for name, jobset in jobsets.items()}
        return {identity: self._last[identity] for identity in ids if identity in self._last}

    def cancel(self, ids: list[str]):
        """Delete the workloads: their pods get SIGTERM, and time to save."""
        for identity in ids:
            _called(delete_command(identity))


def workload_name(folder: Path, name: str):
    """Return a name for a run's workload: Kubernetes allows it, and no other run has it.

    It has at most 39 letters, digits and hyphens.
    """
    digest = hashlib.sha256(f"{folder}/{name}".encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-")
    return f"run-{words}-{digest}"


def create_command(workload: str, job: Job):
    """Return the xpk command line that submits a job."""
    flag_values = flags.FLAGS
    # exec replaces the pod's shell, so that SIGTERM reaches the run and not the shell
    train_command = shlex.join(["exec", "python", "launch/train.py", *job.arguments])
    command = ["xpk", "workload", "create", f"--workload={workload}", f"--command={train_command}"]
    command += [f"--device-type={flag_values.device_type}", f"--num-slices={flag_values.slices}"]
    command += [f"--docker-image={flag_values.docker_image}", *_place(), "--quiet"]
    command += [f"--max-restarts={MAX_RESTARTS}", f"--restart-on-exit-codes={STOPPED}"]
    command += ["-tgps", str(SAVE_SECONDS), f"--ttl-seconds-after-finished={REMEMBER_SECONDS}"]
    return command + ([f"--storage={flag_values.storage}"] if flag_values.storage else [])


def delete_command(workload: str):
    """Return the xpk command line that deletes a workload."""
    return ["xpk", "workload", "delete", f"--workload={workload}", *_place(), "--quiet"]


def _place():
    """Return the flags of xpk that say where: cluster, project and zone."""
    names = [name for name in ("cluster", "project", "zone") if flags.FLAGS[name].value is not None]
    return [f"--{name}={flags.FLAGS[name].value}" for name in names]


def jobset_state(jobset: dict):
    """Return the state of a JobSet (jobset.x-k8s.io/v1alpha2).

    Returns:
        WAITING, RUNNING, 0 for completed, or 1 for failed.
    """
    status = jobset.get("status", {})
    conditions = {c["type"] for c in status.get("conditions", []) if c.get("status") == "True"}
    if "Completed" in conditions:
        return 0
    if "Failed" in conditions:
        return 1
    is_running = any(
        job_status.get("active") or job_status.get("ready")
        for job_status in status.get("replicatedJobsStatus", [])
    )
    return RUNNING if is_running else WAITING


def _called(command):
    """Run a command and return what it prints.

    Raises:
        ValueError: The command fails.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["it says nothing"]
        raise ValueError(f"--engine=gke: {' '.join(command[:3])} failed: {lines[-1]}")
    return result.stdout
