"""One experiment in each file: get_config(arg) returns its numbers as a ConfigDict, without jax."""
