"""A sandbox in bubblewrap: all of CPython, in Linux namespaces without network or our files.

It needs `bwrap` (Debian and Ubuntu: apt install bubblewrap) and a kernel that lets it make
namespaces.

Tests: tests/rewards/test_program.py.
"""

import json
import math
import os
import shutil
import subprocess
import tempfile

from deepseek_jax.rewards.sandbox import (
    CRASHED,
    MAX_MEMORY_BYTES,
    MAX_OUTPUT_BYTES,
    TIME_LIMIT,
    SandboxError,
)

MAX_PROCESSES = 128
NOBODY = "65534"
# Where programs are looked up inside the sandbox
INSIDE = "/usr/bin:/usr/local/bin"


class BubblewrapSandbox:
    """Sandbox that is new for each program, with the Python under /usr.

    Raises:
        SandboxError: If one of the programs that it needs is not installed.
    """

    name = "bubblewrap"

    def __init__(self):
        search_paths = {"bwrap": None, "prlimit": INSIDE, "python3": INSIDE}
        # The limit on processes does not hold for root, so root becomes nobody first
        if os.geteuid() == 0:
            search_paths["setpriv"] = None
        self._tools = {tool: shutil.which(tool, path=path) for tool, path in search_paths.items()}
        missing_tools = [tool for tool, path in self._tools.items() if path is None]
        if missing_tools:
            raise SandboxError(
                f"there is no {' and no '.join(missing_tools)}; apt install bubblewrap"
            )

    def close(self):
        """Do nothing: no process outlives its program."""

    def run(self, program: str, stdin: str, seconds: float) -> tuple[str, str | None]:
        """Run a program and return its output.

        Args:
            program: The program's code.
            stdin: The text that it reads from standard input.
            seconds: Limit of its time.

        Returns:
            (output, failure). The failure is None, CRASHED or TIME_LIMIT.

        Raises:
            SandboxError: If bubblewrap itself fails.
        """
        with (
            _file(program) as program_file,
            _file(stdin) as stdin_file,
            # A file with a size limit, so that an endless print fills no memory
            _file() as stdout_file,
            _file() as stderr_file,
            _file() as status_file,
        ):
            process = subprocess.Popen(
                self._command(program_file.fileno(), status_file.fileno(), seconds),
                stdin=stdin_file,
                stdout=stdout_file,
                stderr=stderr_file,
                pass_fds=(program_file.fileno(), status_file.fileno()),
                env={},
            )
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                # bwrap writes to this file when the program starts
                if not _text(status_file):
                    raise SandboxError(f"{self.name} did not start in {seconds} s") from None
                return _text(stdout_file), TIME_LIMIT
            finally:
                # Because of --die-with-parent this also kills every process inside
                process.kill()
                process.wait()
            # bwrap reports the exit code last. Without one bwrap itself failed, and there is no
            # verdict
            exit_codes = [
                json.loads(line).get("exit-code") for line in _text(status_file).splitlines()
            ]
            if not exit_codes or exit_codes[-1] is None:
                raise SandboxError(f"{self.name} did not run: {_text(stderr_file)[:200]!r}")
            return _text(stdout_file), None if exit_codes[-1] == 0 else CRASHED

    def _command(self, source_fd, status_fd, seconds):
        user_command = []
        if "setpriv" in self._tools:
            user_command = [self._tools["setpriv"], f"--reuid={NOBODY}", f"--regid={NOBODY}"]
            user_command += ["--clear-groups", "--no-new-privs"]
        limits = {"as": MAX_MEMORY_BYTES, "fsize": MAX_OUTPUT_BYTES, "core": 0}
        limits |= {"cpu": math.ceil(seconds) + 1, "nproc": MAX_PROCESSES}
        return [
            *user_command,
            self._tools["bwrap"],
            *"--unshare-all --die-with-parent --new-session --clearenv".split(),
            *"--setenv PATH /usr/bin --ro-bind /usr /usr --symlink usr/lib /lib".split(),
            *"--symlink usr/lib64 /lib64 --symlink usr/bin /bin --proc /proc".split(),
            *"--dev /dev --remount-ro /dev --size 16777216 --tmpfs /tmp --perms 0444".split(),
            *f"--ro-bind-data {source_fd} /tmp/main.py --chdir /tmp --uid {NOBODY} --gid".split(),
            *f"{NOBODY} --cap-drop ALL --json-status-fd {status_fd}".split(),
            # The limits are set inside, where Linux 5.14 and later count only the sandbox's
            # processes, not all processes of the user
            self._tools["prlimit"],
            *(f"--{name}={value}" for name, value in limits.items()),
            *f"{self._tools['python3']} -I /tmp/main.py".split(),
        ]


def _file(text=""):
    file = tempfile.TemporaryFile()
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    return file


def _text(file):
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES).decode("utf-8", "replace")
