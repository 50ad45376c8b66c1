"""What a plan says of all programs and of a whole step, by hand."""

from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from rich.console import Console

from deepseek_jax.costs.chips import CHIPS, GIB, Chip
from deepseek_jax.costs.program import GENERATION, REWARD, SYNC, TRAINING, Program
from launch.planning.hlo import Cost
from launch.planning.hlo_collectives import Collective
from launch.planning.program_table import program_table
from launch.planning.records import CompiledProgram, Memory
from launch.planning.report import WIDTH, compiled_line, step_lines, verdict_lines
from launch.planning.roofline import Roofline, Seconds, seconds_of
from launch.planning.summary import duration, summary_table

CHIP = Chip("round", 8 * GIB, 1e9, 1e12, link=1e9)
MESH = SimpleNamespace(shape={"fsdp": 4}, size=4)


def program(name, part, seconds, times=1, token=None):
    """What step_lines reads of a planned program. seconds: of a call; None where the compiler refused it.
    token: (those of a token, their number). Ten more are likely, a tenth of one for a token.
    """
    of_token, token_steps = token or (None, 0)
    planned = SimpleNamespace(name=name, part=part, times=times, token_steps=token_steps)
    if seconds is None:
        return planned, None, None
    call = Roofline(products=1, memory=1, operations=seconds, collective_latency=10)
    if token is None:
        return planned, None, Seconds(call)
    turn = Roofline(products=1, memory=1, operations=of_token, operation_latency=0.1)
    return planned, None, Seconds(call, turn)


STEP = [
    program("weights", SYNC, 12.5),
    program("prefill", GENERATION, 20.0, times=4),
    program("decode", GENERATION, 5.0, times=2, token=(1.5, 1000)),
    program("update", TRAINING, 30.0, times=2),
]


def test_a_step_of_reinforcement_is_split_by_mlperfs_names():
    """Oracle: by hand: 2 x 30, 4 x 20 + 2 x 5 + 1000 x 1.5 and 12.5 seconds at least; likely 2 x 40, 4 x 30 +
    2 x 15 + 1000 x 1.6 and 22.5, under the names that MLPerf's logs have. Pre-training before the step is no
    part of it.
    """
    first, split = step_lines([program("pretrain", TRAINING, 1000.0), *STEP])
    assert first == "a step, with the longest completions: at least 1,660 s, likely 1,850 s"
    assert split.split(", ") == [
        "    policy_training_time 80.0 s",
        "exposed_generation_time 1,750 s",
        "weight_sync_time 22.5 s",
    ]


def test_a_step_has_the_seconds_of_its_reward_models():
    """Oracle: by hand, rounded: 3 x 2 seconds at least, 3 x 12 likely, of a reward model; a measurement's are
    none.
    """
    paid = program("liked: score", REWARD, 2.0, times=3)
    other = program("answers: liked: score", REWARD, 500.0)
    first, split = step_lines([*STEP, paid, other])
    assert first == "a step, with the longest completions: at least 1,670 s, likely 1,890 s"
    assert split.endswith(", reward_seconds 36.0 s")


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
    line, split = step_lines(planned)
    assert line.startswith("reasoning, ") and "policy_training_time 80.0 s," in split


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2270.4, "2,270 s"),
        (1.336, "1.34 s"),
        (0.9999, "1.00 s"),
        (0.018, "18.0 ms"),
        (0.000123, "123 us"),
        (4.2e-9, "0.00 us"),
        (0.0, "0 s"),
    ],
)
def test_a_duration_has_three_digits_and_its_unit(seconds, text):
    """Oracle: by hand."""
    assert duration(seconds) == text


def decoding(name="decode", peak=5, two_rounds=None):
    """(Program, CompiledProgram, Seconds) of a program that decodes 8 tokens in each of 100 turns, of 1 GB,
    1000 operations and 10 gatherings each, and copies 2 GB in each of 4 calls.
    """
    gathers = {("all-gather", ("fsdp",)): Collective(count=10)}
    call = Cost(hbm_bytes=2e9, operations=Counter({(0, 2e9): 1}), count=1)
    token = Cost(
        Counter({"bf16 x bf16": 1e9}),
        Counter(),
        1e9,
        Counter({(0, 1e9): 1}),
        count=1000,
        collectives=gathers,
    )
    compiled = CompiledProgram(Memory(GIB, 0, 0, 0, peak * GIB), call, token, two_rounds)
    program = Program(
        name, None, (), MESH, 8, 4e9, "8 slots", part=GENERATION, times=4, token_steps=100
    )
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    return program, compiled, seconds_of(Program(**vars(program) | {"mesh": mesh}), compiled, CHIP)


def printed(table):
    console = Console(width=WIDTH, soft_wrap=True, record=True, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def test_the_first_table_says_what_fits_how_long_it_takes_and_what_binds():
    """Oracle: by hand: a token is 1 s of memory and 1000 x 0.9 us + 10 x 7 us of latency, 1.00097 s; 8 of
    them a second, and 4e9 FLOPs of 4 x 1e12. 100 of them are 100.097 s; 4 calls of 2 s are 8. 9 GiB do not
    fit into 8, and what the compiler refuses has no numbers. A token in two rounds, of 2 GB, is 2 s. No line
    is wider than the page, whatever the names.
    """
    name = "reasoning of the second stage: answers with tools"
    refused = Program("refused", None, (), MESH, 8, 0.0, ""), CompiledProgram(refusal="no"), None
    again = Cost(hbm_bytes=2e9, operations=Counter({(0, 2e9): 1}), count=1)
    planned = [decoding(), decoding("large", peak=9), decoding("uneven", two_rounds=again), refused]
    text = printed(summary_table(planned, CHIP))
    rows = [line.split() for line in text.splitlines()]
    token = "decode, token yes 5.00 1.00 s 1.00 s 100 s 8 0.1% memory".split()
    call = "decode, call 2.00 s 2.00 s 8.00 s - - memory".split()
    assert token in rows and call in rows
    assert "uneven, 2 rounds 2.00 s 2.00 s 200 s 4 0.0% memory".split() in rows
    assert any(row[:4] == ["large,", "token", "NO", "9.00"] for row in rows)
    assert ["refused", "NO", *"-------"] in rows
    long = [(Program(**vars(p) | {"name": f"{name}: {p.name}"}), *rest) for p, *rest in planned[:2]]
    for each in (
        text,
        printed(summary_table(long, CHIP)),
        printed(program_table(*decoding(), CHIP)),
    ):
        assert max(map(len, each.splitlines())) <= WIDTH


def test_the_verdict_names_what_does_not_fit():
    """Oracle: the words a reader needs; by hand, 9 GiB of 8."""
    (fitting,) = verdict_lines([decoding("small", 3), decoding()], CHIP)
    assert fitting == "All fit. decode holds most: 5.0 of 8.00 GiB."
    first, excess, *fields = verdict_lines([decoding(), decoding("large", 9)], CHIP)
    assert first == "large does not fit. What would help:" and fields
    assert excess.startswith("    1.00 GiB are too much")


def test_a_line_follows_each_compilation():
    """Oracle: the words a reader needs; a program that decodes is timed by its token."""
    program, compiled, seconds = decoding()
    line = compiled_line(program, compiled, seconds)
    assert line == "decode: from the cache, 5.0 GiB, likely 1.00 s a token"
    compiled = CompiledProgram(compiled.memory, compiled.cost, seconds=41.3)
    line = compiled_line(program, compiled, seconds_of(program, compiled, CHIP))
    assert line == "decode: compiled in 41 s, 5.0 GiB, likely 2.00 s"
    assert compiled_line(program, CompiledProgram(refusal="no"), None) == "decode: does not compile"


def test_decoding_whose_collectives_all_wait_says_what_was_tried():
    """Oracle: the words; nothing where one collective is asynchronous."""
    program, compiled, seconds = decoding()
    text = printed(program_table(program, compiled, seconds, CHIPS["v5p"]))
    assert "no collective; tried: ON_SPARSE_CORES," in text
    text = printed(program_table(program, compiled, seconds, CHIP))
    assert "no collective; tried: no option of the compiler" in text
    compiled.token.collectives["all-gather", ("fsdp",)].asynchronous = 1
    assert "no collective" not in printed(program_table(program, compiled, seconds, CHIP))
