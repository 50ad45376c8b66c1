"""What would help if a program does not fit: config fields, the most effective ones first."""

from deepseek_jax.costs.chips import GIB, Chip
from deepseek_jax.costs.program import GENERATION, REWARD, TRAINING, Program
from launch.planning.records import Compiled


def remedies(program: Program, compiled: Compiled, chip: Chip):
    """Return lines on what would help a program that does not fit on a device of this chip."""
    if compiled.refusal is not None:
        return _fields(program, None)
    memory = compiled.memory
    excess = memory.peak + program.beside_bytes - chip.hbm_bytes
    held, live = memory.arguments, memory.peak - memory.arguments
    own = (
        f"{excess / GIB:.2f} GiB are too much; arguments hold {held / GIB:.2f}, {live / GIB:.2f} are "
        "temporaries and new results"
    )
    # The largest first. What waits in the host's memory has no bytes here
    others = sorted((one for one in program.beside if one.bytes), key=lambda one: -one.bytes)
    waiting = [f"{one.bytes / GIB:.2f} are {one.name}" for one in others]
    smaller = [f"{one.fields}, for {one.name}" for one in others if one.fields]
    return [", ".join([own, *waiting]), *smaller, *_fields(program, held > live)]


def _fields(program, arguments_dominate):
    """Return lines that name fields.

    Args:
        arguments_dominate: Whether the arguments take more than the rest; None if nobody knows.
    """
    larger = {axis: size for axis, size in program.mesh.shape.items() if axis in ("fsdp", "expert")}
    split = " or ".join(f"mesh.{axis} (now {size})" for axis, size in larger.items())
    if program.part == GENERATION:
        lines = [
            "fewer slots, or a lower max_completion_length or max_prompt_length",
            f"more devices along {split}, which split the weights",
        ]
    elif program.part == TRAINING:
        lines = [
            "more micro_batches (micro_batch_size in pre-training), model.remat='full', a lower "
            "model.expert_buffer, or mesh.context above 1 for long rows",
            f"more devices along {split}; optimizer.moment_dtype='bfloat16', reference_dtype='bfloat16'",
        ]
    elif program.part == REWARD:
        lines = [
            "a lower batch_size of the reward model, or a lower max_completion_length",
            f"more devices along {split}, which split the weights",
        ]
    else:
        lines = [f"more devices along {split}"]
    return lines[::-1] if arguments_dominate else lines
