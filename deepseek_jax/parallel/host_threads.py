"""The threads of a process that simulates several devices on its CPU."""

import os
import re

# As many programs of a device may wait in a collective at once
PER_DEVICE = 8


def give_devices_threads():
    """Give XLA threads enough for all simulated devices; before anything asks jax for devices.

    XLA's pool has a thread a core, or one a device if these are more, and a program that waits in a
    collective holds one. Programs that do not depend on each other run at the same time: with every thread
    waiting in a collective that another device has not reached yet, none ever goes on. XLA reads the pool's
    size from NPROC; a value that is set already stays.
    """
    counts = re.findall(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if counts and int(counts[-1]) > 1:
        os.environ.setdefault("NPROC", str(PER_DEVICE * int(counts[-1])))
