"""Sums: a world where few answers in the corpus have working and many are wrong."""
