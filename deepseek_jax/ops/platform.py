"""The one place that depends on the kind of machine that a program is for: the form of each op, and sizes."""

import contextlib

import jax

# Two tables: what any machine takes, and kinds of machine that take something else. "tpu7x" is one of the
# TPUs. "one cpu" is a CPU of one device: in a program for several, some forms would gather what is split.

# The form of each op unless its caller names one. A new form is a function in a folder of ops/, a name for it
# where its op calls `choose`, and that name here
FORMS = {
    "einsum": {"any": "plain", "one cpu": "matrices"},
    "prepare": {"any": "as_it_is", "one cpu": "inputs_last"},
    "save_for_backward": {"any": "plain", "cpu": "bits"},
    # For rows longer than longest_whole_row
    "attend": {"any": "blockwise", "tpu": "splash"},
    # The k-th largest of a row's index scores
    "kth_largest": {"any": "bits", "cpu": "sorted"},
    "attend_latent": {"any": "plain", "tpu": "kernel"},
    "grouped_matmul": {"any": "ragged", "cpu": "pieces", "tpu": "megablox"},
    # A kernel scales the sum of each 128 terms. An expert's rows fill whole tiles of it
    "quantize": {"any": "plain", "tpu": "kernel"},
    "block_product": {"any": "dequantized", "tpu": "kernel"},
    "grouped_fp8": {"any": "ragged", "cpu": "pieces", "tpu": "kernel"},
    # bfloat16 holds the values of E4M3 exactly; other TPUs do not multiply them
    "fp8_operands": {"any": "bfloat16", "tpu7x": "float8_e4m3fn"},
    # XLA computes this product densely over the experts, on TPU too
    "product_over_rows": {"any": "ragged", "tpu": "megablox"},
    "expert_parallel": {"any": "padded", "tpu": "ragged"},
    "ragged_all_to_all": {"any": "gathered", "tpu": "ragged"},
}
# Rows, tokens and numbers in memory at a time
SIZES = {
    # Tokens of a row up to which attention holds all its scores at once, and those of a longer one's blocks.
    # On a CPU blocks take less than half the time from 128 tokens on
    "longest_whole_row": {"any": 1024, "cpu": 128},
    # Larger blocks read and write their running sums less often, and compute more beyond the diagonal
    "attention_block": {"any": 512, "cpu": 128, "tpu": 1024},
    # Scores of an indexer's heads, before their weighted sum: 64 MiB of float32
    "index_scores_alive": {"any": 2**24, "cpu": 2**20, "tpu": 2**26},
    # The logits of a chunk of tokens: 64 MiB of float32. On TPU 512 MiB: each chunk reads the head from HBM,
    # and adds to its gradient there
    "logits_alive": {"any": 2**24, "tpu": 2**27},
    # Each expert's rows are padded to a multiple of expert_block, and all rows together to one of row_tiles:
    # of its first number where they are few. A tile of a TPU's kernel may hold rows of several experts, but
    # must be full
    "expert_block": {"any": 8, "tpu": 1},
    "row_tiles": {"any": (1, 1), "tpu": (128, 512)},
    # None: that of other products
    "fp8_expert_block": {"any": None, "tpu": 256},
}
# Forms that are Pallas kernels for a TPU. "interpreted" emulates each of them anywhere
KERNELS = ("kernel", "megablox", "splash")
# {op: {a form that needs the machine: its emulation}}, besides those of kernels
EMULATED = {"ragged_all_to_all": {"ragged": "gathered"}}
# {op: its forms that XLA does not compile for a CPU}
NOT_ON_CPU = {"ragged_all_to_all": ("ragged",)}
# The machines that CPU devices can stand for, and their platforms; see ops.rehearsal
MACHINES = {"v5e": "tpu", "v5p": "tpu", "v6e": "tpu", "tpu7x": "tpu", "gpu": "gpu"}
# The one that they stand for, set by ops.rehearsal, and the (op, form)s that it would have computed by since
rehearsed: str | None = None
taken: set[tuple[str, str]] = set()
_plain = False


def choose(op, implementation=None, suits=lambda: True, **forms):
    """The form of an op that `implementation` names, or else FORMS. forms: every form by its name.

    suits(): whether a TPU's own form takes the shapes at hand. Where it does not, a TPU takes the form of any
    machine. Raises ValueError for a name that the op does not have, and for one that this machine lacks.
    """
    if implementation is None:
        suited = platform() != "tpu" or suits()
        implementation = form_of(op) if suited else FORMS[op]["any"]
    if rehearsed is not None:
        implementation = _emulation(op, implementation)
    if implementation not in forms:
        raise ValueError(
            f"{op} has no implementation={implementation!r}; it has {', '.join(forms)}"
        )
    missing = _missing(op)
    if implementation in missing:
        what = "a kernel for TPUs" if implementation in KERNELS else "not for CPUs"
        others = ", ".join(form for form in forms if form not in missing)
        raise ValueError(
            f"{op}: implementation={implementation!r} is {what}, and this program is for a {platform()}; "
            f"leave it out, or set it to one of {others}"
        )
    return forms[implementation]


def _emulation(op, form):
    """Note the machine's own form as taken, and return the form that emulates it."""
    own = form_of(op) if form == "interpreted" else form
    taken.add((op, own))
    return "interpreted" if own in KERNELS else EMULATED.get(op, {}).get(own, own)


def forms_taken():
    """The forms that a rehearsal took, as "op=form, ..." in the order of FORMS."""
    return ", ".join(f"{op}={form}" for op in FORMS for of, form in sorted(taken) if of == op)


def _missing(op):
    """The forms that the machine does not have."""
    kernels = () if platform() == "tpu" else KERNELS
    return kernels + (NOT_ON_CPU.get(op, ()) if platform() == "cpu" else ())


def form_of(op):
    """The name of the form that FORMS has for the machine that the program being traced is for."""
    form = _row_of(FORMS[op])
    if rehearsed is not None:
        taken.add((op, form))
    return form


def size_of(name):
    """The size that SIZES has for the machine that the program being traced is for."""
    return _row_of(SIZES[name])


def precision_of(x):
    """The precision of a product of x and another operand of its dtype: exact for float32.

    By default a TPU rounds the operands of float32 products to bfloat16, and a GPU to 10 bits.
    """
    return jax.lax.Precision.HIGHEST if x.dtype == "float32" else None


@contextlib.contextmanager
def plain_forms():
    """Trace the block with the forms and sizes that any machine has, those that others are compared with."""
    global _plain
    _plain = True
    try:
        yield
    finally:
        _plain = False


def _row_of(choices):
    if _plain:
        return choices["any"]
    kinds = [platform(), "any"]
    if rehearsed is not None:
        kinds.insert(0, rehearsed)
    # The size of no mesh is 0
    elif platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1:
        kinds.insert(0, "one cpu")
    elif "tpu7x" in choices and platform() == "tpu":
        device = jax.config.jax_default_device or jax.local_devices()[0]
        kinds = ["tpu7x"] * (getattr(device, "device_kind", None) == "TPU7x") + kinds
    return choices[next(kind for kind in kinds if kind in choices)]


def platform():
    """ "cpu", "gpu" or "tpu": that of the machine that is rehearsed, else of the device of
    `jax.default_device`, else of this process's own backend.

    Compiling ahead of time for a machine that is not there sets such a device.
    """
    if rehearsed is not None:
        return MACHINES[rehearsed]
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform
