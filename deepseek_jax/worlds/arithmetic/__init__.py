"""Sums: a world in which few answers are worked, and many are wrong."""
