"""The environment of every test, set before jax is imported: CPU, eight devices, quick compiles.

Subprocesses that a test starts inherit all of it. Level 0 is for correctness, never for timings.
"""

import collections
import gc
import json
import math
import os
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest

from configs.common import without_fusion_emitters
from tests import seconds
from tests.buckets import served_bucket
from tests.caches import CACHES

MAPS = 40_000
SECONDS = pytest.StashKey()
PROGRAMS = pytest.StashKey()

# Eight device threads share few cores: one that comes late to a collective must not abort us.
COLLECTIVES_WAIT = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # compiling, not running, is most of a small test's time
    "--xla_llvm_disable_expensive_passes=true",
    without_fusion_emitters(),  # two thirds of the time, for slower code
    "--xla_cpu_parallel_codegen_split_count=1",
    *COLLECTIVES_WAIT,
)

# What tests make is seldom garbage: looking for it among millions of objects took a fifteenth of a run
gc.set_threshold(50_000, 20, 100)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS]).strip()
# As parallel.host_threads does, which would import jax
os.environ.setdefault("NPROC", "64")
# The key of a program has the flags
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHES / f"jax-{version('jax')}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Where in a file each operation of a program comes from, which no test reads: a tenth of a run
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An empty Bucket, and an empty cache folder for copies of what is in it."""
    caches = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("caches"))}
    with served_bucket() as served, mock.patch.dict(os.environ, caches):
        yield served


@pytest.fixture(scope="session")
def toys(request, tmp_path_factory):
    """The Finished runs of all processes."""
    # Here: a plugin must not import jax before the environment above is set
    from tests.finished import Finished

    base = tmp_path_factory.getbasetemp()
    # Each process of xdist has a folder of its own below the common one
    return Finished((base.parent if hasattr(request.config, "workerinput") else base) / "finished")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Forget compiled programs where there are many: each holds memory maps, and a process has 65530.
    Else leave alone what a file has made: to look through millions of objects, as a run does at its end,
    would take seconds each time.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS or "REACHED" in os.environ:
        import jax  # here: a plugin must not import it before the environment above is set

        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
    gc.collect(1)
    gc.freeze()


def pytest_sessionstart(session):
    session.config.stash[PROGRAMS] = seconds.programs()


def pytest_collection_modifyitems(items):
    """The files that take longest come first: pyproject.toml has --no-loadscope-reorder."""
    files = seconds.recorded()["files"]
    items.sort(key=lambda item: -files.get(file_of(item), math.inf))


def file_of(item):
    return item.nodeid.partition("::")[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Count the CPU seconds of each file."""
    began = seconds.cpu_seconds()
    result = yield
    of_files = item.config.stash.setdefault(SECONDS, collections.Counter())
    of_files[file_of(item)] += seconds.cpu_seconds() - began
    return result


def pytest_sessionfinish(session):
    """Hand the seconds to the process that started this one, or keep them for python -m tests.seconds."""
    of_files = session.config.stash.setdefault(SECONDS, collections.Counter())
    if warm := sys.modules.get("tests.warm"):
        # The seconds of its programs are known when it ends
        began = seconds.cpu_seconds()
        warm.stop()
        of_files["tests/warm.py"] += seconds.cpu_seconds() - began
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["seconds"] = dict(of_files)
    elif of_files:
        seconds.LAST.parent.mkdir(exist_ok=True)
        compiled = seconds.programs() - session.config.stash[PROGRAMS]
        seconds.LAST.write_text(json.dumps({"compiled": compiled, "files": of_files}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Gather the seconds of a process of pytest-xdist."""
    of_files = node.config.stash.setdefault(SECONDS, collections.Counter())
    of_files.update(getattr(node, "workeroutput", {}).get("seconds", {}))
