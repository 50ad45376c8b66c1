"""Evaluation of a checkpoint on problems."""
