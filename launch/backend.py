"""What JAX and a cluster's launcher find in the environment, and what is wrong with it.

JAX is imported where it is used, because launch/common.py imports this module.
"""

import os
import traceback

# What a launcher gives each of the processes that it starts together
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
GKE = ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")
SLICES = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
NUMBERS = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", *GKE[1:], *SLICES[1:])


def no_backend(error: BaseException):
    """A message with the remedy where JAX found no devices to compute on, else None."""
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
    """Raise ValueError where Slurm or GKE started several processes, and left out variables of them: each
    would run by itself.
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
