"""Where examples come from: the small world's corpus, built on disk, and questions in jsonl."""

import inspect
import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data import arithmetic
from deepseek_jax.parallel.processes import barrier, first_process


@dataclass
class ArithmeticConfig(tfds.core.BuilderConfig):
    """Settings of one corpus. Its name spells them, so that other settings are another dataset.

    The name ends in a digest of the mix and of arithmetic.py itself: whoever edits how documents
    are written reads new documents, not those on disk.
    """

    name: str = ""
    num_documents: int = 0
    seed: int = 0
    mix: arithmetic.CorpusMix = arithmetic.CorpusMix()

    def __post_init__(self):
        how = inspect.getsource(arithmetic) + repr(self.mix)
        digest = blake2b(how.encode(), digest_size=4).hexdigest()
        self.name = f"{self.num_documents}_documents_seed_{self.seed}_{digest}"


class ArithmeticCorpus(tfds.core.GeneratorBasedBuilder):
    """Documents {"text": bytes} of arithmetic.write_document, in one split "train"."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing to download; tfds would look for checksums, by a package we lack

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(self.builder_config.seed)
        for index in range(self.builder_config.num_documents):
            yield index, {"text": arithmetic.write_document(rng, self.builder_config.mix)}


def arithmetic_corpus(data_dir, *, num_documents, seed, mix=None):
    """Random access to documents {"text": bytes}, built under `data_dir` if they are not there.

    The same settings give the same documents, and a second call reads what the first one wrote.
    A build that is killed leaves a folder `incomplete.*`, which is never read. Of several processes,
    which share the folder, the first builds and the others wait. mix: CorpusMix,
    None for the default one. Stored as array_record, which needs no TensorFlow.
    Raises ValueError if num_documents is not positive.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} is no corpus; set it to at least 1.")
    mix = arithmetic.CorpusMix() if mix is None else mix
    config = ArithmeticConfig(num_documents=num_documents, seed=seed, mix=mix)
    options = dict(data_dir=data_dir, config=config, file_format="array_record")
    tfds.disable_progress_bar()  # a few seconds of work
    if first_process():
        ArithmeticCorpus(**options).download_and_prepare()
    barrier("the corpus is built")
    return ArithmeticCorpus(**options).as_data_source(split="train")  # reads what is there by now


def load_jsonl_questions(path):
    """Questions of a jsonl file in GSM8K's format (arXiv:2110.14168): dicts of question, answer.

    A line is {"question": "...", "answer": "<working> #### 1,072"}. The answer kept is the text
    after the last ####, without commas: "1072". Raises ValueError naming the file and the line
    that is not so, or the file that is missing or holds no question.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}; set config.data.path to a jsonl file.")
    examples = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                examples.append(_parse_question(line, f"{path}, line {number}"))
    if not examples:
        raise ValueError(f"{path} holds no questions; give a jsonl file with one on each line.")
    return examples


def _parse_question(line, place):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place} is not a JSON object with a question and an answer.")
    for key in ("question", "answer"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ValueError(f"{place} has no text under {key!r}; it has {sorted(record)}.")
    _, mark, answer = record["answer"].rpartition("####")
    answer = answer.strip().replace(",", "")
    if not mark or not answer:
        raise ValueError(f"{place}: the answer has no final '#### <answer>'.")
    return {"question": record["question"], "answer": answer}
