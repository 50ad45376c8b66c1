"""Published claims about R1's distilled students against R1, checked by the arithmetic of deployment."""

from typing import NamedTuple

from deepseek_jax.costs.deployment import (
    cache_bytes,
    chips_for,
    step_bytes,
    tokens_per_second,
    weight_bytes,
)
from deepseek_jax.costs.flops import active_weights
from deepseek_jax.models import ModelConfig, count_params

# A claimed ratio holds where the computed one is within this factor of it, either way
ABOUT = 1.25
# The forms in which teacher and students were published
RELEASED = ("fp8", "bf16")


class Finding(NamedTuple):
    """A claim about a student: the ratio claimed, and the ratio computed under an assumption."""

    student: str
    claim: str
    claimed: float
    assumption: str
    found: float

    @property
    def holds(self):
        return 1 / ABOUT <= self.found / self.claimed <= ABOUT


def findings(
    teacher: ModelConfig,
    students: dict[str, ModelConfig],
    *,
    batch_size: int,
    context_length: int,
    chip_bytes: int,
):
    """A list of Finding, for those students that a claim is about.

    teacher: ModelConfig of R1. students: dict from a name of configs/models.py to ModelConfig. batch_size,
    context_length: of the large batch. chip_bytes: the memory of a chip.
    """
    load = dict(batch_size=batch_size, context_length=context_length)
    claims = {
        "r1_distill_qwen_7b": ("7B against 671B parameters", 671 / 7, parameter_ratios, {}),
        "r1_distill_llama_8b": ("about 1/80 of the memory", 80.0, memory_ratios, load),
        "r1_distill_qwen_32b": (
            "about 50 times the inference speed",
            50.0,
            speed_ratios,
            load | {"chip_bytes": chip_bytes},
        ),
    }
    return [
        Finding(name, claim, claimed, assumption, found)
        for name, (claim, claimed, ratios, options) in claims.items()
        if name in students
        for assumption, found in ratios(teacher, students[name], **options).items()
    ]


def parameter_ratios(teacher: ModelConfig, student: ModelConfig):
    """Teacher's over student's number of parameters, by assumption: dict of float."""
    return {
        "all parameters": count_params(teacher) / count_params(student),
        "those that a token meets": active_weights(teacher) / active_weights(student),
    }


def memory_ratios(
    teacher: ModelConfig, student: ModelConfig, *, batch_size: int, context_length: int
):
    """Teacher's over student's bytes, by assumption: dict of float."""

    def ratio(forms, tokens=0):
        of_teacher, of_student = (
            weight_bytes(config, form) + tokens * cache_bytes(config)
            for config, form in zip((teacher, student), forms, strict=True)
        )
        return of_teacher / of_student

    tokens = batch_size * context_length
    return {
        "weights, both bf16": ratio(("bf16", "bf16")),
        "weights, both FP8": ratio(("fp8", "fp8")),
        "weights as released: FP8, bf16": ratio(RELEASED),
        f"bf16, with the cache of {batch_size} x {context_length}": ratio(("bf16", "bf16"), tokens),
        "the cache alone": cache_bytes(teacher) / cache_bytes(student),
    }


def speed_ratios(
    teacher: ModelConfig,
    student: ModelConfig,
    *,
    batch_size: int,
    context_length: int,
    chip_bytes: int,
):
    """Student's over teacher's tokens a second, as memory bounds them, by assumption: dict of float.

    All but the last are for one chip, whose bandwidth cancels. In the last, each model runs on the fewest
    chips of chip_bytes that hold its weights, and all of these chips serve one sequence.
    """

    def ratio(forms, *workload):
        of_teacher, of_student = (
            tokens_per_second(config, form, *workload, 1.0)
            for config, form in zip((teacher, student), forms, strict=True)
        )
        return of_student / of_teacher

    chips = [
        chips_for(weight_bytes(config, form), chip_bytes)
        for config, form in zip((teacher, student), RELEASED, strict=True)
    ]
    alone = ratio(RELEASED, 1, context_length)
    many = f"batch {batch_size} x {context_length}"
    # So many tokens that each expert is read: no larger batch can change the ratio
    crowd = 10**6
    return {
        "batch 1, both bf16": ratio(("bf16", "bf16"), 1, context_length),
        "batch 1, as released: FP8, bf16": alone,
        f"{many}, both bf16": ratio(("bf16", "bf16"), batch_size, context_length),
        f"{many}, as released": ratio(RELEASED, batch_size, context_length),
        "at most: every expert read, no cache, both bf16": step_bytes(teacher, "bf16", crowd, 0)
        / step_bytes(student, "bf16", crowd, 0),
        "batch 1, each on its fewest chips, as released": alone * chips[1] / chips[0],
    }
