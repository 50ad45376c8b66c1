"""Training of a judge, a generative reward model (arXiv:2412.19437, section 5.2.1)."""
