"""The time that all stages of a run will still take, from the stages that it has finished."""

import collections
from collections.abc import Sequence

from deepseek_jax.progress import duration
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.training.settings import LoopSettings


class TimeLeft:
    """Seconds that stages took, by kind, and an estimate of those that are left.

    A stage is estimated from earlier ones of its kind: by training step if it trains, else as long
    as they took on average. Compilation counts, so that first estimates are rather too high.
    """

    def __init__(self):
        self._seconds: dict[type[Stage], float] = collections.defaultdict(float)
        self._units: dict[type[Stage], int] = collections.defaultdict(int)

    def add(self, stage: Stage, seconds: float):
        """Note that a stage took so long."""
        self._seconds[type(stage)] += seconds
        self._units[type(stage)] += _units(stage)

    def text(self, stages: Sequence[Stage]) -> str:
        """Return the time for stages in words, such as "about 5 min left".

        It is "at least" where some kind has not finished a stage yet, and "" where that is so for
        all stages that train: measurements alone say little.
        """
        known_stages = [stage for stage in stages if type(stage) in self._units]
        if not any(_trains(stage) for stage in known_stages):
            return ""
        seconds = sum(
            self._seconds[type(stage)] * _units(stage) / self._units[type(stage)]
            for stage in known_stages
        )
        bound = "about" if len(known_stages) == len(stages) else "at least"
        return f"{bound} {duration(seconds)} left"


def _trains(stage):
    return isinstance(stage.settings, LoopSettings) and not stage.measures


def _units(stage):
    return stage.settings.num_steps if _trains(stage) else 1
