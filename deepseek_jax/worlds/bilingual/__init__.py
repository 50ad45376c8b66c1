"""Puzzles and requests in English and Chinese."""
