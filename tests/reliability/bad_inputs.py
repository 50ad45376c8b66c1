"""Mistakes that users make, as command lines of the programs, each with the message that it gets.

A case is (command line, message) or (command line, message, prepare). A bare first name, as in
"train sft_small", is a file of configs/. "..." in a message stands for any text: words of libraries, long
lists, paths. Of a long message the beginning is enough. prepare(good, here) writes what the command needs
into its directory `here`; `good` has whole things to copy, see goods.py.
"""

from tests.reliability.bad_checkpoints import CHECKPOINTS, RUNS, WEIGHTS
from tests.reliability.bad_configs import CONFIGS, EXITS, SEEDS, SIZES, STAGES
from tests.reliability.bad_data import DATA
from tests.reliability.bad_flags import FLAGS, HOMES, PLANS, SWEEPS, WORKDIRS
from tests.reliability.bad_more import LARGE, LATE, LONG, MORE, PIPES, TWICE
from tests.reliability.bad_own import BROUGHT
from tests.reliability.bad_tools import TOOLS_AND_LIMITS

GROUPS = dict(
    configs=CONFIGS,
    exits=EXITS,
    stages=STAGES,
    seeds=SEEDS,
    sizes=SIZES,
    flags=FLAGS,
    plans=PLANS,
    sweeps=SWEEPS,
    data=DATA,
    checkpoints=CHECKPOINTS,
    weights=WEIGHTS,
    runs=RUNS,
    homes=HOMES,
    workdirs=WORKDIRS,
    late=LATE,
    large=LARGE,
    pipes=PIPES,
    twice=TWICE,
    more=MORE,
    long=LONG,
    brought=BROUGHT,
    tools=TOOLS_AND_LIMITS,
)
