"""Which kind of machine the program being traced is for."""

import jax


def platform():
    """ "cpu", "gpu" or "tpu": that of the device of `jax.default_device`, else of this process's own backend.

    Compiling ahead of time for a machine that is not there sets such a device; operations that have a form
    for each kind choose by this.
    """
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def on_one_cpu():
    """May arrays be told how to lie, or be joined? On several devices XLA's partitioner would gather them."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1  # 0: there is no mesh
