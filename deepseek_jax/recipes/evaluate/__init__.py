"""A checkpoint measured on problems."""
