"""Join the other processes of a run: --distributed.

JAX is imported where it is used, because launch/common.py imports this module.
"""

import os
import threading

from absl import flags

from deepseek_jax.progress import hush
from deepseek_jax.recipes.environment import process_joined
from launch.backend import check_launcher

flags.disclaim_key_flags()
# The number of a process among those that Slurm, GKE or Open MPI started with it
INDICES = ("SLURM_PROCID", "TPU_WORKER_ID", "OMPI_COMM_WORLD_RANK")
# How long a process that found a mistake waits for the others, to agree who prints it
PRINT_SECONDS = 60


def define_flags():
    """Define --distributed."""
    meaning = "Join other processes; auto where Slurm, GKE, Open MPI or a TPU pod started several."
    flags.DEFINE_enum("distributed", "auto", ("auto", "yes", "no"), meaning)


def seems_first():
    """Whether no launcher numbers this process above 0, as far as its variables say: for the lines that come
    before the processes have joined.
    """
    return all(os.environ.get(name, "0") == "0" for name in INDICES)


def join_peers(seconds: int = 360):
    """Join the other processes as --distributed says, once: -> whether there are others.

    seconds: how long to wait for them. Raises ValueError where --distributed=yes and JAX finds no cluster,
    and as check_launcher.
    """
    import jax

    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    choice = _choice()
    if choice != "no":
        check_launcher()
    if choice == "no" or (choice == "auto" and _count_processes() == 1):
        return False
    # It would take SIGTERM for itself: before the run listens, the signal would be lost
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(initialization_timeout=seconds)
    # JAX raises where it finds no cluster of a kind that it knows
    except ValueError as error:
        raise ValueError(
            f"--distributed=yes: {error} Slurm, GKE, Open MPI and TPU pods are recognised; else leave it out"
        ) from error
    hush(process_joined() != 0)
    return jax.process_count() > 1


def print_once(message: str, print_it):
    """Call print_it(text) on one process for a mistake that all find. A process that alone finds one prints
    it too, with its number.
    """
    if "distributed" not in flags.FLAGS:
        print_it(message)
        return
    # Most mistakes are found before the processes have joined; they join only to agree who prints. Where one
    # does not come, JAX ends this process while it waits: better printed twice than never
    late = threading.Timer(PRINT_SECONDS - 6, print_it, [message])
    late.daemon = True
    late.start()
    joined = _joins_to_print()
    late.cancel()
    if not joined:
        print_it(message)
        return
    import jax

    from deepseek_jax.parallel.processes import say_mistake

    if say_mistake(message):
        index = jax.process_index()
        print_it(message if index == 0 else f"process {index}: {message}")


def _joins_to_print():
    try:
        return join_peers(seconds=PRINT_SECONDS)
    # No peers
    except Exception:
        return False


def _choice():
    """--distributed; "auto" while the flags are not parsed."""
    given = flags.FLAGS.is_parsed() and "distributed" in flags.FLAGS
    return flags.FLAGS.distributed if given else "auto"


def _count_processes():
    """How many processes were started together with this one, by the cluster that JAX would join."""
    # JAX has no public name for what its own detection finds
    from jax._src.clusters import ClusterEnv

    try:
        found = (
            cluster
            for cluster in ClusterEnv._cluster_types
            if not cluster.opt_in_only_method and cluster.is_env_present()
        )
        cluster = next(found, None)
        if cluster is None:
            return 1
        if cluster.name == "slurm":
            # A batch script has the job's SLURM_NTASKS, but is one process: only srun starts the others
            return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        return cluster.get_process_count()
    # A TPU outside of Google's cloud has no metadata server to ask
    except OSError:
        return 1
