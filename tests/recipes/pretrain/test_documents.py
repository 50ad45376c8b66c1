"""The sources of a pre-training run."""

import pytest

from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import CorpusSettings


@pytest.mark.parametrize(
    ("num_held_out", "words"),
    [
        (3, "^data.num_held_out=3 documents .* too few for data.readers=4 .*at least 4"),
        (
            8,
            "^data.sources has 'arithmetic', which leaves 2 documents to train on, .* data.readers=4",
        ),
    ],
)
def test_a_source_with_less_than_a_document_a_reader_is_refused(tmp_path, num_held_out, words):
    """Oracle: the field on whose side they lack: of ten documents for four readers, 3 | 7 and 8 | 2."""
    sizes = dict(num_documents=10, num_held_out=num_held_out, readers=4)
    data = CorpusSettings(("arithmetic",), **sizes)
    with pytest.raises(ValueError, match=words):
        open_corpus(data, tmp_path, 0)
