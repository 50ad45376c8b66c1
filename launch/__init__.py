"""The outside world: flags, devices, processes and signals."""
