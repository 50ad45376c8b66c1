"""A student after its teacher: the objective, its losses, targets, their cache, and the update."""
