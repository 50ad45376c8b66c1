"""FLOPs, bytes and chips, and what was claimed of them."""
