"""Preparation of a process for JAX: XLA's flags and threads, malloc, the search for TPUs.

JAX, XLA and malloc read their settings when the process first uses them. JAX is imported where it
is used, because launch/common.py imports this module.
"""

import functools
import os
import re
import subprocess
import sys

from deepseek_jax.progress import importing_jax

# XLA aborts a process on an unknown flag, so a second process parses the flags first, in 0.3 s
PARSE = "from jaxlib import xla_client; xla_client.CompileOptions().executable_build_options"
# XLA's message about a wrong flag, which follows a place in XLA's source
COMPLAINT = re.compile(
    r"^[EF]\d{4} .*?\] (Unknown .*|Couldn't .*|Could not .*?\".*?\")", re.MULTILINE
)

# On a machine without a TPU these stop libtpu from searching for one, and from printing five lines
# about it
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@functools.cache
def check_xla_flags(xla_flags: str) -> None:
    """Raise ValueError if XLA does not know one of these flags, or cannot read its value."""
    if not xla_flags.strip():
        return
    environment = os.environ | {"XLA_FLAGS": xla_flags}
    process = subprocess.run([sys.executable, "-c", PARSE], env=environment, capture_output=True)
    complaint = COMPLAINT.search(process.stderr.decode(errors="replace"))
    if process.returncode and complaint:
        raise ValueError(
            f"XLA_FLAGS={xla_flags}: {complaint[1]}; correct config.xla_flags or the variable XLA_FLAGS"
        )


def prepare_process(xla_flags: str) -> None:
    """Set what JAX, XLA and malloc read; call it before anything asks for devices.

    Args:
        xla_flags: Flags for XLA. The environment variable XLA_FLAGS comes after them, so its flags
            win.

    Raises:
        ValueError: XLA does not know a flag, or cannot read its value.
    """
    with importing_jax() as wait:
        user_flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{xla_flags} {user_flags}".strip()
        check_xla_flags(os.environ["XLA_FLAGS"])
        from deepseek_jax.parallel.host_memory import keep_freed_memory, return_compilers_memory
        from deepseek_jax.parallel.host_threads import give_devices_threads

        give_devices_threads()
        # This has to come before any other thread runs
        keep_freed_memory()
        wait.remind()
        # This imports JAX: the reminders are for that wait
        return_compilers_memory()
        spare_search_for_tpus()


def spare_search_for_tpus() -> None:
    """Stop libtpu from searching for TPUs on a machine that has none.

    Call it before anything asks for devices.
    """
    # JAX has no public name for what it finds on this machine's bus
    from jax._src import hardware_utils

    if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def has_devices() -> bool:
    """Return True if JAX has set up its devices: then it is too late to prepare this process."""
    if "jax" not in sys.modules:
        return False
    # JAX has no public name for it
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def process_joined() -> int:
    """Return this process's number among the processes that JAX has joined; 0 before it joins.

    Unlike jax.process_index, this does not wait for devices.
    """
    if "jax" not in sys.modules:
        return 0
    # JAX has no public name for it
    from jax._src import distributed

    return distributed.global_state.process_id or 0
