"""Group Relative Policy Optimisation (arXiv:2402.03300)."""
