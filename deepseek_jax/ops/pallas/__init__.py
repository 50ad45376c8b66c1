"""Implementations of ops as Pallas kernels for TPU."""
