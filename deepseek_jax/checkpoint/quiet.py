"""Keep off the console what Orbax and its threads say of damaged files: DamagedCheckpoint says it."""

import functools
import logging
import sys
import traceback
import warnings

import absl.logging


@functools.cache
def quiet_orbax():
    """Do so from now on in this process. --verbosity=1 shows it all."""
    # Orbax logs each attempt as an error; asyncio logs the errors of readings that nobody waits for any more
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or _shows())
    logging.getLogger("asyncio").addFilter(lambda record: _shows())
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(error):
        # Readings that end after Orbax has given up
        last = traceback.extract_tb(error.exc_traceback)[-1:]
        late = any("orbax" in frame.filename or "uvloop" in frame.filename for frame in last)
        if not late or _shows():
            before(error)

    sys.unraisablehook = hook


def _shows():
    return absl.logging.get_verbosity() >= absl.logging.INFO
