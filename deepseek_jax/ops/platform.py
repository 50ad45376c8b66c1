"""The one place that depends on the kind of machine: the form of each op, and sizes."""

import contextlib

import jax

# Two tables, FORMS and SIZES. "any" is what every machine takes, unless its own kind is in the row.
# "tpu7x" is one of the TPUs. "one cpu" is a CPU of one device: in a program for several devices,
# some forms would gather arrays that are split.

# The form of each op, unless its caller names one. To add a form, write a function in a folder of
# ops/, name it where its op calls `choose`, and write that name here
FORMS = {
    "einsum": {"any": "plain", "one cpu": "matrices"},
    "prepare": {"any": "as_it_is", "one cpu": "inputs_last"},
    "save_for_backward": {"any": "plain", "cpu": "bits"},
    # For rows longer than longest_whole_row
    "attend": {"any": "blockwise", "tpu": "splash"},
    # How to find the k-th largest of a row's index scores
    "kth_largest": {"any": "bits", "cpu": "sorted"},
    # Over all keys of a row
    "index_loss": {"any": "plain", "tpu": "kernel"},
    # A block of queries, with the rows that each of them selected
    "attend_selected": {"any": "plain", "tpu": "kernel"},
    "attend_latent": {"any": "plain", "tpu": "kernel"},
    "grouped_matmul": {"any": "ragged", "cpu": "pieces", "tpu": "megablox"},
    # A kernel scales the sum of each 128 terms. Each expert's rows fill whole tiles of the kernel
    "quantize": {"any": "plain", "tpu": "kernel"},
    "block_product": {"any": "dequantized", "tpu": "kernel"},
    "grouped_fp8": {"any": "ragged", "cpu": "pieces", "tpu": "kernel"},
    # Only tpu7x multiplies E4M3 values. Other TPUs get them as bfloat16, which holds them exactly
    "fp8_operands": {"any": "bfloat16", "tpu7x": "float8_e4m3fn"},
    # "ragged" is dense over the experts, on TPU too
    "product_over_rows": {"any": "ragged", "tpu": "megablox"},
    "expert_parallel": {"any": "padded", "tpu": "ragged"},
    "ragged_all_to_all": {"any": "gathered", "tpu": "ragged"},
}
# Sizes: rows, tokens, and numbers in memory at a time
SIZES = {
    # Tokens of the longest row for which attention has all scores in memory at once. On a CPU,
    # blocks take less than half the time from 128 tokens on
    "longest_whole_row": {"any": 1024, "cpu": 128},
    # Tokens of a block, for longer rows. Larger blocks read and write their running sums less
    # often, and compute more beyond the diagonal
    "attention_block": {"any": 512, "cpu": 128, "tpu": 1024},
    # Scores of all heads of an indexer, before their weighted sum: 64 MiB of float32
    "index_scores_alive": {"any": 2**24, "cpu": 2**20, "tpu": 2**26},
    # Keys that queries have selected, gathered for one block of queries: of 576 numbers each
    "selected_rows_alive": {"any": 2**16, "cpu": 2**12},
    # A row of at least this many times the keys that a query selects gathers them; a shorter one
    # masks the others. On a TPU, see launch/pods.md: it depends on how long a gathered row takes,
    # which costs.chips assumes
    "keys_to_gather_from": {"any": 8, "tpu": 4},
    # Logits of a chunk of tokens: 64 MiB of float32. On TPU 512 MiB, because each chunk reads the
    # head from HBM and adds to its gradient there
    "logits_alive": {"any": 2**24, "tpu": 2**27},
    # Each expert's rows are padded to a multiple of expert_block, and all rows together to a
    # multiple of row_tiles: of its first number if they are few, else of its second. A tile of a
    # TPU's kernel may hold rows of several experts, but must be full
    "expert_block": {"any": 8, "tpu": 1},
    "row_tiles": {"any": (1, 1), "tpu": (128, 512)},
    # None: the block size of other products, see ops.fp8_grouped.expert_block
    "fp8_expert_block": {"any": None, "tpu": 256},
}
# Forms that are Pallas kernels for a TPU. "interpreted" emulates each of them on any machine
KERNELS = ("kernel", "megablox", "splash")
# {op: {a form that needs the machine: its emulation}}, for forms that are not kernels
EMULATED = {"ragged_all_to_all": {"ragged": "gathered"}}
# {op: its forms that XLA does not compile for a CPU}
NOT_ON_CPU = {"ragged_all_to_all": ("ragged",)}
# Machines that CPU devices can rehearse, and their platforms; see ops.rehearsal
MACHINES = {"v5e": "tpu", "v5p": "tpu", "v6e": "tpu", "tpu7x": "tpu", "gpu": "gpu"}
# The machine that is rehearsed, set by ops.rehearsal; and the (op, form)s that this machine would
# have computed with since then
rehearsed: str | None = None
taken: set[tuple[str, str]] = set()
_plain = False


def choose(op, implementation=None, suits=lambda: True, **forms):
    """Return the form of an op: the one that `implementation` names, else the machine's.

    Args:
        op: A key of FORMS, which has the machine's form.
        implementation: Name of a form, or None.
        suits: Tells whether a TPU's form takes the shapes at hand. If it does not, and no form is
            named, a TPU takes the form of any machine.
        **forms: Every form of the op by its name.

    Raises:
        ValueError: If the op does not have the named form, or this machine lacks it.
    """
    if implementation is None:
        takes_shapes = platform() != "tpu" or suits()
        implementation = form_of(op) if takes_shapes else FORMS[op]["any"]
    if rehearsed is not None:
        implementation = _emulation(op, implementation)
    if implementation not in forms:
        raise ValueError(
            f"{op} has no implementation={implementation!r}; it has {', '.join(forms)}"
        )
    missing_forms = _missing(op)
    if implementation in missing_forms:
        reason = "a kernel for TPUs" if implementation in KERNELS else "not for CPUs"
        other_forms = ", ".join(form for form in forms if form not in missing_forms)
        raise ValueError(
            f"{op}: implementation={implementation!r} is {reason}, and this program is for a {platform()}; "
            f"leave it out, or set it to one of {other_forms}"
        )
    return forms[implementation]


def _emulation(op, form):
    """Note the machine's own form in `taken`, and return the form that emulates it."""
    real_form = form_of(op) if form == "interpreted" else form
    taken.add((op, real_form))
    return "interpreted" if real_form in KERNELS else EMULATED.get(op, {}).get(real_form, real_form)


def forms_taken():
    """List the forms that a rehearsal took, as "op=form, ..." in the order of FORMS."""
    return ", ".join(
        f"{op}={form}" for op in FORMS for taken_op, form in sorted(taken) if taken_op == op
    )


def _missing(op):
    """Return the forms that this machine does not have."""
    kernels = () if platform() == "tpu" else KERNELS
    return kernels + (NOT_ON_CPU.get(op, ()) if platform() == "cpu" else ())


def form_of(op):
    """Return the name of an op's form in FORMS for the machine that the traced program is for."""
    form = _row_of(FORMS[op])
    if rehearsed is not None:
        taken.add((op, form))
    return form


def size_of(name):
    """Return the size in SIZES for the machine that the traced program is for."""
    return _row_of(SIZES[name])


def precision_of(x):
    """Return the precision for a product of x and an operand of its dtype: exact for float32.

    By default a TPU rounds the operands of float32 products to bfloat16, and a GPU to 10 bits.
    """
    return jax.lax.Precision.HIGHEST if x.dtype == "float32" else None


@contextlib.contextmanager
def plain_forms():
    """Trace a `with` block in the forms and sizes that any machine has.

    Other forms are compared with these.
    """
    global _plain
    _plain = True
    try:
        yield
    finally:
        _plain = False


def _row_of(row):
    if _plain:
        return row["any"]
    kinds = [platform(), "any"]
    if rehearsed is not None:
        kinds.insert(0, rehearsed)
    # Without a mesh, the size is 0
    elif platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1:
        kinds.insert(0, "one cpu")
    elif "tpu7x" in row and platform() == "tpu":
        device = jax.config.jax_default_device or jax.local_devices()[0]
        kinds = ["tpu7x"] * (getattr(device, "device_kind", None) == "TPU7x") + kinds
    return row[next(kind for kind in kinds if kind in row)]


def platform():
    """Return the platform that programs are traced for: "cpu", "gpu" or "tpu".

    It is the platform of the machine that is rehearsed; else of the device in `jax.default_device`;
    else of this process's own backend. Compiling ahead of time for a machine that is not there sets
    such a device.
    """
    if rehearsed is not None:
        return MACHINES[rehearsed]
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
