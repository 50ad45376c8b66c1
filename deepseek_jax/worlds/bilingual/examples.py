"""The corpus and the examples of the bilingual world, in memory."""

from deepseek_jax.data.tasks import Task
from deepseek_jax.worlds.bilingual.corpus import CorpusMix, CorpusWriter
from deepseek_jax.worlds.bilingual.preferences import PreferenceWriter
from deepseek_jax.worlds.bilingual.tasks import puzzle_examples, request_examples
from deepseek_jax.worlds.written import in_order, written_corpus

# Number of distinct requests in the preferences of a split
NUM_JUDGED = 512
KINDS = "puzzles", "requests", "preferences", "safety"


def bilingual_documents(
    mix: CorpusMix | None = None, *, num_documents: int, seed: int
) -> list[dict]:
    """Write documents {"text": str}; see written.written_corpus.

    Args:
        mix: None for the default mix.
    """
    writer = CorpusWriter(mix or CorpusMix())
    return written_corpus(
        lambda rng, _: writer.write(rng), mix, num_documents=num_documents, seed=seed
    )


def bilingual_examples(what: str, *, num_train: int, num_held_out: int, seed: int) -> Task:
    """Make a Task of one of KINDS: puzzles, requests, preferences or safety.

    Its examples are made by tasks.py and preferences.PreferenceWriter. The writer's held-out
    examples are about held-out requests.

    Raises:
        ValueError: For another kind, and if there are fewer puzzles or requests than num_train or
            num_held_out.
    """
    if what not in KINDS:
        raise ValueError(f"there are no bilingual {what!r}; choose from {', '.join(KINDS)}.")
    train, held_out = (
        in_order(_write(what, seed, number, held_out=split == "held_out"), split)
        for split, number in (("train", num_train), ("held_out", num_held_out))
    )
    return Task(train, held_out)


def _write(what, seed, n, held_out):
    if what == "puzzles":
        return puzzle_examples(seed, n, held_out=held_out)
    if what == "requests":
        return request_examples(seed, n, held_out=held_out)
    writer = PreferenceWriter(request_examples(seed, NUM_JUDGED, held_out=held_out))
    return writer.pairs(seed, n) if what == "preferences" else writer.safety(seed, n)
