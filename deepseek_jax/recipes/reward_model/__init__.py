"""Reward models (arXiv:2501.12948, section 3.1)."""
