"""What a plan says of a whole step, by hand."""

from types import SimpleNamespace

from deepseek_jax.costs.program import GENERATION, SYNC, TRAINING
from launch.planning.report import step_lines
from launch.planning.roofline import Roofline


def program(name, part, seconds, times=1):
    """What step_lines reads of a planned program. seconds: with collectives hidden; None where it was refused
    by the compiler. With none hidden it takes ten more.
    """
    roofline = None
    if seconds is not None:
        roofline = Roofline(products=1, memory=1, operations=seconds, collectives=10)
    return SimpleNamespace(name=name, part=part, times=times), None, roofline


STEP = [
    program("weights", SYNC, 12.5),
    program("prefill", GENERATION, 20.0, times=4),
    program("decode", GENERATION, 15.0, times=100),
    program("update", TRAINING, 30.0, times=2),
]


def test_a_step_of_reinforcement_is_split_by_mlperfs_names():
    """Oracle: by hand: 2 x 30, 4 x 20 + 100 x 15 and 12.5 seconds with collectives hidden, under the names
    that MLPerf's logs have. Pre-training before the step is no part of it.
    """
    (line,) = step_lines([program("pretrain", TRAINING, 1000.0), *STEP])
    assert line.startswith("a step, ")
    assert line.endswith(
        ": policy_training_time 60, exposed_generation_time 1.58e+03, weight_sync_time 12.5"
    )


def test_each_phase_has_a_step_of_its_own_and_none_without_all_three_parts():
    """Oracle: by hand: the prefixes of names; an update alone, and a phase with a program that the compiler
    refuses, have no line.
    """
    planned = [
        (SimpleNamespace(**vars(one) | {"name": f"{phase}: {one.name}"}), compiled, seconds)
        for phase in ("reasoning", "scenarios")
        for one, compiled, seconds in STEP
    ]
    planned += [program("scenarios: scores", TRAINING, None), program("sft: update", TRAINING, 5.0)]
    (line,) = step_lines(planned)
    assert line.startswith("reasoning, ") and "policy_training_time 60," in line
