"""R1-Zero, and R1 in its four stages (arXiv:2501.12948)."""
