"""Implementations of ops for XLA's CPU compiler.

ops/platform.py chooses them, and tests compare them with the plain forms.
"""
