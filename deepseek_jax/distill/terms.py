"""A distillation objective: named terms, each with its weight, and a check that all of them work."""

import math

import jax
import jax.numpy as jnp
import optax


def token_mean(x, mask, normalizer):
    """Sum of x over the tokens under mask, divided by normalizer: float32[].

    x: float32[...]. mask: bool[...]. normalizer: float32[], the number of True in mask over the whole global
    batch, so that micro-batches add up.
    """
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(normalizer, 1)


def combine_terms(weights, values):
    """(loss float32[], metrics): the weighted sum of the terms, and each term before its weight.

    weights: dict from name to float or float32[]. values: dict from the same names to float32[]. The hybrid
    loss of arXiv:1503.02531 is {"soft": alpha, "hard": 1 - alpha}. A weight of the number 0 leaves its
    term out altogether, so that it may be not finite. Raises ValueError for names that differ.
    """
    if weights.keys() != values.keys():
        raise ValueError(
            f"config.loss.weights names {', '.join(sorted(weights))}, and this objective has "
            f"{', '.join(sorted(values))}; give each of these a weight, 0 for one that is not wanted"
        )
    used = {name: weight for name, weight in weights.items() if not _is_zero(weight)}
    loss = sum((weight * values[name] for name, weight in used.items()), jnp.float32(0))
    return loss, jax.lax.stop_gradient(dict(values))


def gradient_norms(terms, params):
    """(values, norms): terms(params), a dict of float32[], and the norm of each one's gradient, by name.

    One forward and one backward pass a term: for a first step.
    """
    values, pull_back = jax.vjp(terms, params)
    zeros = jax.tree.map(jnp.zeros_like, values)
    norms = {
        name: optax.tree.norm(pull_back(zeros | {name: jnp.ones_like(value)})[0])
        for name, value in values.items()
    }
    return values, norms


def check_terms(weights, values, gradient_norms, path="config.loss"):
    """Raises ValueError for terms that are weighed and yet do nothing at step 1, each with its config field.

    path: of the block that the weights stand in. weights, values, gradient_norms: dicts from a term's name to
    a number, as combine_terms and gradient_norms have them. Such a term is 0 or not finite, or its gradient
    is: its inputs never reached it, or a mask left nothing.
    """
    faults = []
    for name, weight in weights.items():
        if _is_zero(weight):
            continue
        found = {"value": float(values[name]), "gradient norm": float(gradient_norms[name])}
        faults += [
            f"{path}.weights.{name}={float(weight):g}, and the term's {what} is {number:g}"
            for what, number in found.items()
            if number == 0 or not math.isfinite(number)
        ]
    if faults:
        raise ValueError(
            "; ".join(faults)
            + ": see that what the term compares is in the batch, differs, and is not "
            "masked out, or set that weight to 0"
        )


def _is_zero(weight):
    return isinstance(weight, int | float) and weight == 0
