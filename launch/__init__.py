"""The programs, and the outside world: flags, devices, processes and signals."""
