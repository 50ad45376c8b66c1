"""Forms of ops/ for XLA's CPU compiler, chosen by ops/platform.py and held to the plain forms by tests."""
