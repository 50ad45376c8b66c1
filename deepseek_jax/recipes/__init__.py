"""Whole runs, as lists of stages. A recipe is a module with SETTINGS and JOB, a job.Job."""
