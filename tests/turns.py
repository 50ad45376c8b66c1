"""Conversations by hand."""


def turns(*texts, system=None):
    """Messages of user and assistant by turns, behind a system message where there is one."""
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", "assistant"] * len(texts)
    return start + [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
