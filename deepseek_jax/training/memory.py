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
    local_stats = [
        _read(device) for device in (jax.local_devices() if devices is None else devices)
    ]
    all_stats = [
        stats
        for process_stats in from_each(local_stats)
        for stats in process_stats
        if stats is not None
    ]
    return {"host_peak_gib": peak / GIB} | (
        _each(all_stats) if len(all_stats) <= MOST_DEVICES else _ends(all_stats)
    )


def _read(device):
    """Return {"id", kind: GiB}, or None where the device reports no memory."""
    stats = device.memory_stats()
    if not stats or not stats.keys() >= set(KINDS.values()):
        return None
    return {"id": device.id} | {kind: stats[name] / GIB for kind, name in KINDS.items()}


def _each(all_stats):
    return {
        f"device_{stats['id']}_{kind}_gib": stats[kind] for stats in all_stats for kind in KINDS
    }


def _ends(all_stats):
    metrics = {}
    for kind in KINDS:
        in_order = sorted(all_stats, key=lambda stats: stats[kind])
        for end, stats in (("largest", in_order[-1]), ("smallest", in_order[0])):
            metrics[f"{end}_{kind}_gib"] = stats[kind]
            metrics[f"{end}_{kind}_device"] = float(stats["id"])
    return metrics
