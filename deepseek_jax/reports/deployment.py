"""Rich tables that compare models in deployment with their teacher, one row per model."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.costs import deployment as d
from deepseek_jax.costs.flops import active_weights
from deepseek_jax.costs.sparse_attention import attention_costs, contexts
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.params import count_params

FORMS = "dense", "sparse"


def size_table(models: dict[str, ModelConfig]) -> Table:
    """Build a table of parameters, weights and cache.

    Args:
        models: Name -> ModelConfig, as in all of these tables.
    """
    caption = (
        "active: weights in the matrix products of one token. FP8: projections in E4M3 with scales of "
        "128 x 128 blocks; embedding, head, router, norms and biases stay bfloat16, and the router's "
        "balancing bias is float32. Without multi-token prediction."
    )
    columns = "parameters", "active", "bf16 GB", "FP8 GB", "of it bf16", "cache B/token"
    table = _table("sizes", caption, columns)
    for name, config in models.items():
        byte_counts = (
            d.weight_bytes(config, "bf16"),
            d.weight_bytes(config, "fp8"),
            d.unquantised_bytes(config),
        )
        counts = count_params(config), active_weights(config)
        cells = *(f"{n:,}" for n in counts), *(f"{size / 1e9:.4g}" for size in byte_counts)
        table.add_row(name, *cells, f"{d.cache_bytes(config):,}")
    return table


def speed_table(
    models: dict[str, ModelConfig],
    *,
    chip_name: str,
    chip_bytes: int,
    bytes_per_second: float,
    batch_size: int,
    context_length: int,
) -> Table:
    """Build a table of the chips for the weights, and of tokens per second and chip.

    The speeds are for batch 1 and for batch_size.
    """
    expert_texts = [
        f", {d.distinct_experts(config, batch_size):.1f} of {name}'s {config.n_routed_experts} a layer"
        for name, config in models.items()
        if config.n_routed_experts
    ]
    experts = f" (for a batch of {batch_size}{''.join(expert_texts)})" if expert_texts else ""
    caption = (
        f"chips of {chip_bytes / 2**30:.0f} GiB for the weights alone; tokens/s of all sequences together, "
        f"per chip of {bytes_per_second / 1e9:,.0f} GB/s, with enough chips to hold the model. A step "
        f"reads every weight once, of routed experts the expected number that tokens choose{experts}, and "
        f"{context_length} tokens of bfloat16 cache a sequence. Compute, writes and transfers count as free."
    )
    cells = [(batch, form) for batch in (1, batch_size) for form in d.FORMATS]
    columns = (
        "chips\nbf16",
        "\nfp8",
        *(f"batch {batch}\n{form} tokens/s" for batch, form in cells),
    )
    table = _table(f"decoding on TPU {chip_name}, bound of its memory", caption, columns)
    for name, config in models.items():
        chips = (d.chips_for(d.weight_bytes(config, form), chip_bytes) for form in d.FORMATS)
        rates = (
            d.tokens_per_second(config, form, batch, context_length, bytes_per_second)
            for batch, form in cells
        )
        table.add_row(name, *map(str, chips), *(f"{rate:,.1f}" for rate in rates))
    return table


def ratio_table(models: dict[str, ModelConfig], *, batch_size: int, context_length: int) -> Table:
    """Build a table of each model's ratios to the first model, the teacher."""
    (teacher_name, teacher), *students = models.items()
    caption = (
        f"{teacher_name}'s number divided by the model's; for tokens/s (bf16, a chip) the model's "
        f"divided by {teacher_name}'s"
    )
    size_columns = "parameters", "active", "bf16\nbytes", "fp8\nbytes", "cache\nbytes"
    columns = (*size_columns, "tokens/s\nbatch 1", f"tokens/s\nbatch {batch_size}")
    table = _table(f"against {teacher_name}", caption, columns)
    for name, student in students:
        size_ratios = [
            *(count(teacher) / count(student) for count in (count_params, active_weights)),
            *(d.weight_bytes(teacher, form) / d.weight_bytes(student, form) for form in d.FORMATS),
            d.cache_bytes(teacher) / d.cache_bytes(student),
        ]
        speed_ratios = [
            d.step_bytes(teacher, "bf16", batch, context_length)
            / d.step_bytes(student, "bf16", batch, context_length)
            for batch in (1, batch_size)
        ]
        table.add_row(name, *(f"{ratio:.3g}" for ratio in size_ratios + speed_ratios))
    return table


def attention_table(config: ModelConfig) -> Table:
    """Build a table of attention costs with and without a model's indexer, by context length."""
    caption = (
        "FLOPs a token, forward, on average over a row of that length: scores and weighted values, and the "
        "indexer; bytes of the bfloat16 cache: of the whole context, and read for one more token"
    )
    columns = [f"{name}\n{kind}" for name in ("FLOPs", "cache B", "read B") for kind in FORMS]
    table = _table("attention in all layers, by tokens of context", caption, columns)
    for length in contexts(config):
        pairs = zip(*attention_costs(config, length), strict=True)
        table.add_row(f"{length:,}", *(f"{number:.3g}" for pair in pairs for number in pair))
    return table


def measured_table(models: dict[str, ModelConfig], speeds: dict[str, float], caption: str) -> Table:
    """Build a table of measured decoding speeds.

    Args:
        models: Name -> ModelConfig.
        speeds: Name -> tokens a second. The first is the reference, with ratio 1.
    """
    table = _table("decoding, measured", caption, ("parameters", "active", "tokens/s", "ratio"))
    first_speed = next(iter(speeds.values()))
    for name, speed in speeds.items():
        counts = count_params(models[name]), active_weights(models[name])
        table.add_row(
            name, *(f"{n:,}" for n in counts), f"{speed:,.0f}", f"{speed / first_speed:.2f}"
        )
    return table


def _table(title, caption, columns):
    table = Table(
        title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
