"""Threads for a process that simulates several devices on its CPU."""

import os
import re

# Programs of one device that may wait in a collective at once
PER_DEVICE = 8


def give_devices_threads():
    """Make XLA's thread pool large enough for all simulated devices.

    Call this before anything asks jax for devices.

    XLA's pool has one thread for each core, or one for each device if these are more, and a program
    that waits in a collective occupies a thread. Programs that do not depend on each other run at
    the same time. If every thread waits in a collective that another device has not reached yet, no
    program ever goes on. XLA reads the pool's size from NPROC; a value that is set already stays.
    """
    counts = re.findall(
        r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if counts and int(counts[-1]) > 1:
        os.environ.setdefault("NPROC", str(PER_DEVICE * int(counts[-1])))
