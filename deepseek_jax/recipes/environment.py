"""What JAX, XLA and malloc read when this process starts to use them.

JAX is imported where it is used, because launch/common.py imports this module.
"""

import functools
import os
import re
import subprocess
import sys

from deepseek_jax.progress import importing_jax

# XLA aborts the process that parses a flag which it does not know: this parses them, in 0.3 s, in another one
PARSE = "from jaxlib import xla_client; xla_client.CompileOptions().executable_build_options"
# What it says of them, behind the place in its source
COMPLAINT = re.compile(
    r"^[EF]\d{4} .*?\] (Unknown .*|Couldn't .*|Could not .*?\".*?\")", re.MULTILINE
)

# Where there is no TPU: libtpu searches for none, nor complains in five lines that it has not found one
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@functools.cache
def check_xla_flags(given: str) -> None:
    """Raise ValueError where XLA does not know one of these flags, or cannot read its value."""
    if not given.strip():
        return
    environment = os.environ | {"XLA_FLAGS": given}
    done = subprocess.run([sys.executable, "-c", PARSE], env=environment, capture_output=True)
    said = COMPLAINT.search(done.stderr.decode(errors="replace"))
    if done.returncode and said:
        raise ValueError(
            f"XLA_FLAGS={given}: {said[1]}; correct config.xla_flags or the variable XLA_FLAGS"
        )


def prepare_process(xla_flags: str) -> None:
    """Set what JAX and malloc read when this process starts to use them: call it before anything asks for
    devices. xla_flags are put before XLA_FLAGS of the environment, which win. Raises ValueError for a flag
    that XLA does not know.
    """
    with importing_jax() as wait:
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{xla_flags} {given}".strip()
        check_xla_flags(os.environ["XLA_FLAGS"])
        from deepseek_jax.parallel.host_memory import keep_freed_memory, return_compilers_memory
        from deepseek_jax.parallel.host_threads import give_devices_threads

        give_devices_threads()
        # It has to come before any other thread runs
        keep_freed_memory()
        wait.remind()
        # It imports JAX
        return_compilers_memory()
        spare_search_for_tpus()


def spare_search_for_tpus() -> None:
    """Where this machine has no TPU, have libtpu look for none: call it before anything asks for devices."""
    # JAX has no public name for what it finds on this machine's bus
    from jax._src import hardware_utils

    if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def has_devices() -> bool:
    """Whether something has asked JAX for devices in this process: then it is too late to prepare it."""
    if "jax" not in sys.modules:
        return False
    # JAX has no public name for it
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def process_joined() -> int:
    """The number of this process among those that JAX has joined, 0 before: unlike jax.process_index it waits
    for no devices.
    """
    if "jax" not in sys.modules:
        return 0
    # JAX has no public name for it
    from jax._src import distributed

    return distributed.global_state.process_id or 0
