"""Sweep the divergences of a student's soft targets: both KLs and JSD, three seeds each (arXiv:2306.13649).

python launch/sweep.py --config=configs/distill_small.py --sweep=configs/sweeps/divergences.py
"""

DIVERGENCES: list[dict[str, str | float]] = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd", "beta": 0.1},
    {"divergence": "jsd", "beta": 0.5},
    {"divergence": "jsd", "beta": 0.9},
]


def sweep(config):
    """Overrides of the config, a dict for each run: its students have the same divergence."""
    return [
        {
            f"students.{student}.loss.{field}": value
            for student in config.students
            for field, value in fields.items()
        }
        | {"seed": seed}
        for seed in range(3)
        for fields in DIVERGENCES
    ]
