"""GRPO: the source of groups, the update, reward models in use, and scenarios."""
