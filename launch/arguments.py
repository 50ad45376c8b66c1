"""An argument without a flag, and what to write in place of a flag that is not there."""

from absl import flags


def named(argv: list[str], flag: str) -> list[str]:
    """A command line whose first argument without a flag is the value of --FLAG, if it has no --FLAG."""
    if any(argument.lstrip("-").partition("=")[0] == flag for argument in argv[1:]):
        return argv
    for place in range(1, len(argv)):
        if not argv[place].startswith("-") and not _takes_next(argv[place - 1]):
            return [*argv[:place], f"--{flag}={argv[place]}", *argv[place + 1 :]]
    return argv


def _takes_next(argument):
    """Whether the next argument is the value of this one, as in --workdir FOLDER."""
    if not argument.startswith("-") or "=" in argument:
        return False
    name = argument.lstrip("-")
    return name not in flags.FLAGS or not flags.FLAGS[name].boolean
