"""Logits or log-probabilities in, (scalar, metrics) out."""
