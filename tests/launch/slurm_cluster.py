"""A Slurm of two virtual nodes on this machine, for tests: munged, slurmctld and two slurmd."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = "munged", "slurmctld", "slurmd", "sbatch", "srun"
# The first node has the machine's name, to which the processes of a run connect; nobody looks up the second
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName={host}b NodeHostname={host}b NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm_cluster(folder: Path):
    """Start the cluster: -> {name: value} of the environment in which Slurm's commands find it.

    Skips the test where Slurm is not installed.
    """
    os.environ["PATH"] += ":/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs Slurm: {', '.join(missing)} is not installed")
    host, user = socket.gethostname(), subprocess.check_output(["id", "-un"], text=True).strip()
    for name in ("state", host, f"{host}b"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, user=user, folder=folder, ports=free_ports(3)))
    environment = {"SLURM_CONF": str(config)}
    with contextlib.ExitStack() as stack:
        start_munge(folder, stack)
        daemons = ["slurmctld"], ["slurmd", "-N", host], ["slurmd", "-N", f"{host}b"]
        for number, command in enumerate(daemons):
            log = stack.enter_context(open(folder / f"{number}.log", "w"))
            daemon = subprocess.Popen(
                [*command, "-D"], env=os.environ | environment, stdout=log, stderr=log
            )
            stack.callback(end, daemon)
        wait_for_nodes(environment, folder)
        yield environment


def start_munge(folder, stack):
    """Start a munged that has a key of its own; stack ends it."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    names = {
        "key-file": "key",
        "socket": "sock",
        "pid-file": "pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    files = [f"--{option}={folder}/munge.{end}" for option, end in names.items()]
    # --force: it would not run as root, nor in a folder that others can read
    daemon = subprocess.Popen(
        ["munged", "--foreground", "--force", *files], stderr=subprocess.DEVNULL
    )
    stack.callback(end, daemon)


def end(daemon):
    daemon.terminate()
    daemon.wait(timeout=60)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_nodes(environment, folder):
    until = time.monotonic() + 60
    while True:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%D %t"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        if done.stdout.strip() == "2 idle":
            return
        logs = {path.name: path.read_text()[-2000:] for path in folder.glob("*.log")}
        assert time.monotonic() < until, (done.stdout, done.stderr, logs)
        time.sleep(0.5)
