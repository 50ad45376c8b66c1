"""Tables of models in deployment, read back from their cells."""

import pytest

from configs import models
from deepseek_jax.models import build_model
from deepseek_jax.reports.deployment import measured_table, ratio_table, size_table, speed_table

TEACHER, STUDENT = "V2-Lite", "Qwen-1.5B"
CHIP = dict(chip_name="v5e", chip_bytes=16 * 2**30, bytes_per_second=819e9)
SERVED = dict(batch_size=32, context_length=4096)


@pytest.fixture(scope="module")
def both():
    blocks = {TEACHER: models.deepseek_v2_lite(), STUDENT: models.r1_distill_qwen_1_5b()}
    return {name: build_model(block) for name, block in blocks.items()}


def numbers(table):
    """{row: its cells as floats}."""
    names, *columns = (list(column.cells) for column in table.columns)
    rows = zip(*columns, strict=True)
    return {
        name: [float(text.replace(",", "")) for text in row]
        for name, row in zip(names, rows, strict=True)
    }


def test_sizes_are_those_of_the_published_models(both):
    """Oracle: parameters of the released checkpoints; bfloat16 has two bytes; caches by hand: 27 layers of
    512 + 64 numbers, and 28 layers of keys and values of two heads of 128.
    """
    found = numbers(size_table(both))
    for name, parameters, cache in (
        (TEACHER, 15_706_484_224, 27 * 576 * 2),
        (STUDENT, 1_777_088_000, 28 * 2 * 2 * 128 * 2),
    ):
        row = found[name]
        assert row[0] == parameters and row[5] == cache
        assert row[2] == pytest.approx(2 * parameters / 1e9, rel=1e-3)


def test_ratios_are_those_of_the_other_tables(both):
    """Oracle: the numbers of the tables of sizes and speeds, the teacher's by the student's; for speeds the
    student's by the teacher's. Cells have three digits.
    """
    sizes, speeds = numbers(size_table(both)), numbers(speed_table(both, **CHIP, **SERVED))
    (ratios,) = numbers(ratio_table(both, **SERVED)).values()
    parameters, active, bf16, fp8, _, cache = (
        teacher / student for teacher, student in zip(sizes[TEACHER], sizes[STUDENT], strict=True)
    )
    # Chips in bf16 and fp8, then tokens/s in bf16 and fp8, of one sequence and of the batch
    _, _, one, _, batch, _ = (
        student / teacher for teacher, student in zip(speeds[TEACHER], speeds[STUDENT], strict=True)
    )
    assert ratios == pytest.approx([parameters, active, bf16, fp8, cache, one, batch], rel=0.01)


def test_a_chip_is_counted_for_each_part_of_the_weights(both):
    """Oracle: by hand: 31.4 GB of bfloat16 weights need two chips of 16 GiB, and 3.6 GB need one."""
    found = numbers(speed_table(both, **CHIP, **SERVED))
    assert (found[TEACHER][0], found[STUDENT][0]) == (2, 1)


def test_measured_speeds_are_compared_with_the_first(both):
    """Oracle: by hand: 300 tokens a second against 120."""
    found = numbers(measured_table(both, {TEACHER: 120.0, STUDENT: 300.0}, ""))
    assert [row[2:] for row in found.values()] == [[120, 1], [300, 2.5]]
