"""One update of the parameters, and the loop around it."""
