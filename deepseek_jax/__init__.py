"""DeepSeek in JAX and Flax: the V3 architecture, and the R1 recipe on top of it."""
