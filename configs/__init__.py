"""The numbers of each experiment: one file, one `get_config(arg) -> ConfigDict`. No jax in here."""
