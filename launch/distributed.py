"""Join the other processes of a run (--distributed), and print a message only once.

JAX is imported inside functions, because launch/common.py imports this module.

Tests: tests/launch/test_backend.py, tests/launch/test_train.py.
"""

import os
import sys
import threading

from absl import flags

from deepseek_jax.progress import hush
from deepseek_jax.recipes.environment import process_joined
from launch.backend import check_launcher

flags.disclaim_key_flags()
# Variables with a process's number, if Slurm, GKE or Open MPI started several together
INDICES = ("SLURM_PROCID", "TPU_WORKER_ID", "OMPI_COMM_WORLD_RANK")
# How long a process with a mistake waits for the others, to agree on the one that prints it
PRINT_SECONDS = 60


def define_flags():
    """Define --distributed."""
    meaning = "Join other processes; auto where Slurm, GKE, Open MPI or a TPU pod started several."
    flags.DEFINE_enum("distributed", "auto", ("auto", "yes", "no"), meaning)


def seems_first():
    """Return True if the launcher's variables do not number this process above 0.

    This is for lines that are printed before the processes have joined.
    """
    return all(os.environ.get(name, "0") == "0" for name in INDICES)


def join_peers(seconds: int = 360):
    """Join the other processes as --distributed says; later calls join nothing more.

    Args:
        seconds: How long to wait for the other processes.

    Returns:
        Whether there are other processes.

    Raises:
        ValueError: JAX finds no cluster with --distributed=yes; or see check_launcher.
    """
    import jax

    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    choice = _choice()
    if choice != "no":
        check_launcher()
    if choice == "no" or (choice == "auto" and _count_processes() == 1):
        return False
    # This service would take SIGTERM, and a signal before the run listens would be lost
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(initialization_timeout=seconds)
    # JAX finds no cluster of a kind that it knows
    except ValueError as error:
        raise ValueError(
            f"--distributed=yes: {error} Slurm, GKE, Open MPI and TPU pods are recognised; else leave it out"
        ) from error
    hush(process_joined() != 0)
    return jax.process_count() > 1


def print_once(message: str, print_it):
    """Call print_it(text) on one process, for a mistake that all processes find.

    A process that finds a mistake which process 0 does not find prints it too, with its number.
    """
    # The import of JAX takes longer than most mistakes to find. Without it, and without a launcher's
    # variables, this process is usually the only one: better twice than late
    seems_alone = "jax" not in sys.modules and not any(name in os.environ for name in INDICES)
    if "distributed" not in flags.FLAGS or (seems_alone and _choice() != "yes"):
        print_it(message)
        return
    # Most mistakes are found before the processes have joined. They join only to agree on the one
    # that prints. If one does not come, JAX ends this process while it waits, so the timer prints
    # first: better twice than never
    timer = threading.Timer(PRINT_SECONDS - 6, print_it, [message])
    timer.daemon = True
    timer.start()
    has_peers = _joins_to_print()
    timer.cancel()
    if not has_peers:
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
    # There are no others to join
    except Exception:
        return False


def _choice():
    """Return --distributed; "auto" while the flags are not parsed."""
    has_flag = flags.FLAGS.is_parsed() and "distributed" in flags.FLAGS
    return flags.FLAGS.distributed if has_flag else "auto"


def _count_processes():
    """Count the processes that were started with this one, by the cluster that JAX would join."""
    # JAX has no public name for the cluster that it detects
    from jax._src.clusters import ClusterEnv

    try:
        clusters = (
            cluster
            for cluster in ClusterEnv._cluster_types
            if not cluster.opt_in_only_method and cluster.is_env_present()
        )
        cluster = next(clusters, None)
        if cluster is None:
            return 1
        if cluster.name == "slurm":
            # A batch script has the job's SLURM_NTASKS, but is one process: only srun starts the others
            return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        return cluster.get_process_count()
    # A TPU outside Google's cloud has no metadata server to ask
    except OSError:
        return 1
