"""Metrics of memory: the host's, and every device's of the run."""

import resource
import sys

import jax

from deepseek_jax.parallel.processes import from_each

GIB = 2**30
# Most devices that are logged one by one. With more, only the largest and the smallest values are
MOST_DEVICES = 32
KINDS = {"peak": "peak_bytes_in_use", "in_use": "bytes_in_use"}


def memory_metrics(devices=None):
    """Return the memory of the host and of all devices in GiB, as floats, by metric.

    Every process has to call it.

    - host_peak_gib: this process's peak so far.
    - device_ID_peak_gib and device_ID_in_use_gib: for each device of all processes, where ID is its
      jax.Device.id. A device that does not report its memory, such as a CPU, has neither.
    - largest_peak_gib with largest_peak_device (an ID), smallest_peak_gib, and so on: in place of
      these with more than MOST_DEVICES devices.

    Args:
        devices: this process's devices, by default all of them.
    """
    # ru_maxrss counts bytes on macOS and KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    own = [_read(device) for device in (jax.local_devices() if devices is None else devices)]
    read = [one for process in from_each(own) for one in process if one is not None]
    return {"host_peak_gib": peak / GIB} | (
        _each(read) if len(read) <= MOST_DEVICES else _ends(read)
    )


def _read(device):
    """Return {"id", kind: GiB}, or None where the device reports no memory."""
    stats = device.memory_stats()
    if not stats or not stats.keys() >= set(KINDS.values()):
        return None
    return {"id": device.id} | {kind: stats[name] / GIB for kind, name in KINDS.items()}


def _each(read):
    return {f"device_{one['id']}_{kind}_gib": one[kind] for one in read for kind in KINDS}


def _ends(read):
    metrics = {}
    for kind in KINDS:
        in_order = sorted(read, key=lambda one: one[kind])
        for end, one in (("largest", in_order[-1]), ("smallest", in_order[0])):
            metrics[f"{end}_{kind}_gib"] = one[kind]
            metrics[f"{end}_{kind}_device"] = float(one["id"])
    return metrics
