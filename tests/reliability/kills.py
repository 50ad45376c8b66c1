"""Kill the processes of a run at moments that a seed chooses, again and again, until the run has ended."""

import collections
import json
import os
import random
import signal
import subprocess
import tempfile
from pathlib import Path

from tests import warm
from tests.processes import free_port, wait_for_orphans
from tests.recipes.outcome import assert_equal
from tests.reliability.killed import NEVER

KILLED = Path(__file__).with_name("killed.py")
# Half of the kills come at once, half at most so many seconds after their moment
LATER_SECONDS = 0.3
TIMEOUT = 900


class Killer:
    """Runs of a case of tests.recipes.cases in `processes` processes of one device each.

    kills: of kind -> how many came at a moment of this kind so far.
    """

    def __init__(self, name: str, folder: Path, processes: int = 1, seed: int = 0):
        self.name, self.folder, self.processes = name, folder, processes
        self.rng, self.kills = random.Random(f"{name} {processes} {seed}"), collections.Counter()
        # For each process of the run that nothing interrupted
        self.moments = self.whole("whole")

    def whole(self, name: str):
        """Run to the end in a folder of this name: -> {kind: moments} of each process."""
        ends = self.start(self.folder / name, [NEVER] * self.processes)
        assert all(status == 0 for status, _ in ends), "\n".join(text for _, text in ends)
        return [json.loads(text.splitlines()[-1]) for _, text in ends]

    def chain(self, workdir: Path, kills: int):
        """Kill and resume the run of a folder until there were `kills` in all, or it ends; then compare it
        with the run that nothing interrupted.
        """
        while self.kills.total() < kills:
            victim = self.rng.randrange(self.processes)
            kind, moment = self._draw(self.moments[victim])
            moments = [moment if each == victim else NEVER for each in range(self.processes)]
            ends = self.start(workdir, moments)
            if ends[victim][0] != -signal.SIGKILL:
                assert all(status == 0 for status, _ in ends), "\n".join(text for _, text in ends)
                break
            self.kills[kind] += 1
        else:
            self.whole(workdir.name)
        assert_equal(workdir, self.folder / "whole")

    def _draw(self, there):
        """(kind, a moment of it) in a process that has so many of each: the kind with the fewest kills."""
        kind = min(sorted(there), key=lambda kind: (self.kills[kind], self.rng.random()))
        later = self.rng.choice([0, self.rng.uniform(0, LATER_SECONDS)])
        return kind, f"{kind}:{self.rng.randint(1, there[kind])}:{later:.3f}"

    def start(self, workdir: Path, moments: list[str], devices: int = 1):
        """Start the processes, each with its moment, and wait: -> (exit status, output) of each.

        All of them must end, and nothing that they started may stay.
        """
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        port, started = free_port(), []
        with tempfile.TemporaryDirectory() as outputs:
            paths = [Path(outputs) / str(process) for process in range(self.processes)]
            for process, (path, moment) in enumerate(zip(paths, moments, strict=True)):
                place = [str(process), port] if self.processes > 1 else []
                # Files: a pipe that nobody reads yet would stop a process that says much
                with open(path, "w") as output:
                    streams = dict(stdout=output, stderr=subprocess.STDOUT)
                    own = dict(env=os.environ | {"XLA_FLAGS": flags}, start_new_session=True)
                    given = KILLED, self.name, workdir, moment, *place
                    started.append(warm.Program(*given, **own, **streams))
            for process in started:
                process.wait(TIMEOUT)
                wait_for_orphans(process.pid)
            return [
                (process.returncode, path.read_text())
                for process, path in zip(started, paths, strict=True)
            ]


def kill_again_and_again(killer: Killer, kills: int):
    """Runs of a case until so many of their processes were killed, each compared with the whole one."""
    while killer.kills.total() < kills:
        killer.chain(killer.folder / f"killed_{killer.kills.total()}", kills)
