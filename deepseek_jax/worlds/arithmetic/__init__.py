"""Sums: a world whose corpus has working for few answers and many wrong answers."""
