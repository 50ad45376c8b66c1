"""Memory in the metrics: of the host, and of every device of the run."""

import resource
import sys

import jax

from deepseek_jax.parallel.processes import from_each

GIB = 2**30
# The most devices that are logged one by one; of more, the two that matter most
MOST_DEVICES = 32
KINDS = {"peak": "peak_bytes_in_use", "in_use": "bytes_in_use"}


def memory_metrics(devices=None):
    """Memory in GiB, as floats. Every process has to call it. devices: this process's, by default.

    host_peak_gib: of this process so far. device_ID_peak_gib, device_ID_in_use_gib: of each device of all
    processes, by its jax.Device.id, where devices report that; a CPU does not. With more than MOST_DEVICES,
    only the largest and the smallest: largest_peak_gib with largest_peak_device, the id, and so on.
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
    """{"id", kind: GiB}; None where the device reports no memory."""
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
