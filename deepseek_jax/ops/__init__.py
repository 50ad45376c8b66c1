"""Arrays in, arrays out: the equations of the papers as pure functions."""
