"""A line of a recipe's list, and what a kind of stage is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deepseek_jax.checkpoint import is_orbax
from deepseek_jax.rollout.settings import AnswerOptions


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of stage, as functions of a job.Work.

    check: raises ValueError, naming the field, where the settings do not fit the mesh or the model; for
    runs and plans. compiles: the stage's programs. run: the stage itself; what it does not return it
    leaves in the stage's folder. covers: the inputs of the stage's hash besides the stages that it
    depends on. check_data: raises ValueError where the data do not fit the settings, before any stage
    runs. is_left: whether the folder has what run leaves. is_policy: whether run returns a Policy, or
    None for one that stays where it is. is_measure: whether it returns what it measured, as JSON can hold
    it. builds_data: whether check_data writes a dataset in the work directory.
    """

    check: Callable
    compiles: Callable
    run: Callable
    covers: Callable
    check_data: Callable = lambda work: None
    is_left: Callable[[Path], bool] = lambda folder: is_orbax(folder / "params")
    is_policy: bool = True
    is_measure: bool = False
    builds_data: bool = False


@dataclasses.dataclass(frozen=True)
class Stage:
    """A line of a recipe's list.

    name: its folder, its phase in the metrics, and its block of the config, where `block` names no other.
    kind: of recipes.kinds. start: the stage whose parameters it begins from. reads: the stages whose texts,
    reward models or parameters it uses. title: its name on the page.
    """

    name: str
    kind: Kind
    start: str = ""
    reads: tuple[str, ...] = ()
    title: str = ""
    block: str = ""


class Made(NamedTuple):
    """A stage that has ended. hash: of all its inputs. result: what a measurement found, else None."""

    name: str
    hash: str
    folder: Path
    result: Any = None


class Answering(NamedTuple):
    """What a plan knows of a measurement's answers: their options, the number of prompts, n samples of each.

    prompt_length: tokens of the longest prompt; None where only the data say. dtype: of the parameters.
    scored: whether reward models score the answers. turns: those of a conversation; 0 for a single one.
    """

    options: AnswerOptions
    prompts: int
    n: int = 1
    prompt_length: int | None = None
    dtype: str = "float32"
    scored: bool = False
    turns: int = 0
