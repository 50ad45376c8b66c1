"""Whole runs, each told in order: a module with SETTINGS and run(settings, run) is one."""
