"""Data from a teacher: ask, vary, filter, deduplicate."""
