"""Whole runs, step by step. A recipe is a module with SETTINGS and run(settings, run)."""
