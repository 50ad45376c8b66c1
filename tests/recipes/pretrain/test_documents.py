"""The sources of a pre-training run."""

import pytest

from deepseek_jax.recipes.pretrain import documents
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import CorpusSettings
from tests.recipes.small import one_device


@pytest.mark.parametrize(
    ("num_held_out", "words"),
    [
        (3, "^data.num_held_out=3 documents .* too few for 4 processes .*at least 4"),
        (8, "^data.sources has 'arithmetic', which leaves 2 documents to train on, too few for 4"),
    ],
)
def test_a_source_with_less_than_a_document_a_process_is_refused(
    tmp_path, monkeypatch, num_held_out, words
):
    """Oracle: the field on whose side they lack: of ten documents for four processes, 3 | 7 and 8 | 2."""
    monkeypatch.setattr(documents, "batch_share", lambda mesh: (0, 4))
    data = CorpusSettings(("arithmetic",), num_documents=10, num_held_out=num_held_out)
    with pytest.raises(ValueError, match=words):
        open_corpus(data, tmp_path, 0, one_device())
