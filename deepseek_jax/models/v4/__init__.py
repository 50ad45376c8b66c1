"""DeepSeek-V4: compressed attention, residual streams and experts by table (arXiv:2606.19348)."""
