"""Distillation of a teacher into students (arXiv:2501.12948, section 2.4)."""
