"""How tests run TRL's trainer: on a CPU, in silence, and leaving nothing."""


def grpo_config(folder, **more):
    """A GRPOConfig of groups of two."""
    # Here: it is slow to import
    import trl

    return trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
