"""The papers' equations as pure functions: arrays in, arrays out."""
