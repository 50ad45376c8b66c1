"""Checks of the environment: JAX's devices, and the variables of a cluster's launcher.

This module does not import JAX, because launch/common.py imports it.
"""

import os
import traceback

# Variables that a launcher sets in each process, if it starts several together
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
GKE = ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")
SLICES = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
NUMBERS = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", *GKE[1:], *SLICES[1:])


def no_backend(error: BaseException):
    """Return a message with the remedy if JAX found no devices to compute on; else None."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    began = files and files[-1].endswith(os.path.join("jax", "_src", "xla_bridge.py"))
    if not began and "nable to initialize backend" not in str(error):
        return None
    cause = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0]
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return (
        f"JAX_PLATFORMS={platforms}: {cause or 'there are no such devices here'}; end what else uses the "
        "device, or set JAX_PLATFORMS to devices that are there, such as cpu; '' takes the best of them"
    )


def check_launcher():
    """Raise ValueError if Slurm or GKE started several processes but did not set all variables.

    Without these variables, each process would run by itself. A variable that is not a whole number
    is an error too, and so is a process's number that is too large.
    """
    tasks = _natural("SLURM_STEP_NUM_TASKS")
    hosts = len(os.environ.get(GKE[0], "").split(","))
    slices = _natural(SLICES[1])
    started = {
        f"Slurm started {tasks} tasks": (tasks, SLURM, "SLURM_PROCID"),
        f"GKE started {hosts} workers": (hosts, GKE, "TPU_WORKER_ID"),
        f"there are {slices} slices": (slices, SLICES, "MEGASCALE_SLICE_ID"),
    }
    for what, (count, names, index) in started.items():
        if count < 2:
            continue
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise ValueError(
                f"--distributed: {what}, and {', '.join(missing)} is not set here; start the processes with "
                "srun, or as a GKE job, or give each its own run by --distributed=no"
            )
        for name in names:
            if name in NUMBERS:
                _natural(name)
        if _natural(index) >= count:
            raise ValueError(
                f"--distributed: {what}, and {index}={os.environ[index]} is beyond them; correct it"
            )


def _natural(name):
    text = os.environ.get(name, "0")
    if not text.isdigit():
        raise ValueError(f"--distributed: {name}={text} must be a whole number from 0; correct it")
    return int(text)
