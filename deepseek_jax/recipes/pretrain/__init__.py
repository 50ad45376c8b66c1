"""Pre-training in stages (arXiv:2412.19437, section 4)."""
