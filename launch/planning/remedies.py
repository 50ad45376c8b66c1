"""What would help if a program does not fit: config fields, the most effective ones first.

Tests: tests/launch/test_plan.py.
"""

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import GENERATION, REWARD, TRAINING, Program
from launch.planning.records import CompiledProgram


def remedies(program: Program, compiled: CompiledProgram, chip: Chip):
    """Return lines on what would help a program that does not fit on a device of this chip."""
    memory = compiled.memory
    if memory is None:
        return _fields(program, None)
    excess = memory.peak + program.beside_bytes - chip.hbm_bytes
    argument_bytes, other_bytes = memory.arguments, memory.peak - memory.arguments
    excess_text = (
        f"{excess / GIB:.2f} GiB are too much; arguments hold {argument_bytes / GIB:.2f}, "
        f"{other_bytes / GIB:.2f} are temporaries and new results"
    )
    # The largest first. What waits in the host's memory has no bytes here
    residents = sorted(
        (resident for resident in program.beside if resident.bytes),
        key=lambda resident: -resident.bytes,
    )
    resident_texts = [f"{resident.bytes / GIB:.2f} are {resident.name}" for resident in residents]
    field_texts = [
        f"{resident.fields}, for {resident.name}" for resident in residents if resident.fields
    ]
    return [
        ", ".join([excess_text, *resident_texts]),
        *field_texts,
        *_fields(program, argument_bytes > other_bytes),
    ]


def _fields(program, arguments_dominate):
    """Return lines that name fields.

    Args:
        arguments_dominate: Whether the arguments take more than the rest; None if nobody knows.
    """
    axis_sizes = {
        axis: size for axis, size in program.mesh.shape.items() if axis in ("fsdp", "expert")
    }
    axes_text = " or ".join(f"mesh.{axis} (now {size})" for axis, size in axis_sizes.items())
    if program.part == GENERATION:
        lines = [
            "fewer slots, or a lower max_completion_length or max_prompt_length",
            f"more devices along {axes_text}, which split the weights",
        ]
    elif program.part == TRAINING:
        lines = [
            "more micro_batches (micro_batch_size in pre-training), model.remat='full', a lower "
            "model.expert_buffer, or mesh.context above 1 for long rows",
            f"more devices along {axes_text}; optimizer.moment_dtype='bfloat16', reference_dtype='bfloat16'",
        ]
    elif program.part == REWARD:
        lines = [
            "a lower batch_size of the reward model, or a lower max_completion_length",
            f"more devices along {axes_text}, which split the weights",
        ]
    else:
        lines = [f"more devices along {axes_text}"]
    return lines[::-1] if arguments_dominate else lines
