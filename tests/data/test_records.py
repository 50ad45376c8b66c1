"""Records of every format that is read, against what was written there."""

import csv
import datetime
import decimal
import json
import subprocess
import sys

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from deepseek_jax.data.questions import read_questions
from deepseek_jax.data.records import READERS, read_records
from deepseek_jax.hub import DATA

ROWS = [
    {"question": "2 + 3?", "answer": "5", "level": 1, "tags": ["sum", "short"]},
    {"question": "zwei,\n\"drei\"?", "answer": "5", "level": 2, "tags": []},
]  # fmt: skip


class Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """ROWS as someone else would prepare them."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        text = tfds.features.Text()
        tags = tfds.features.Sequence(text)
        features = {"question": text, "answer": text, "level": np.int32, "tags": tags}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(ROWS)


def jsonl(path):
    path = path / "q.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


def one_json(path):
    (path / "q.json").write_text(json.dumps(ROWS, indent=2))
    return path / "q.json"


def a_csv(path):
    with open(path / "q.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ROWS[0])
        table.writeheader()
        table.writerows(ROWS)
    return path / "q.csv"


def parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path / "q.parquet")
    return path / "q.parquet"


def saved(path):
    datasets.Dataset.from_list(ROWS).save_to_disk(path / "saved", num_shards=2)
    return path / "saved"


def several_splits(path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(path / "splits")
    return path / "splits"


def prepared(path):
    builder = Rows(data_dir=path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    return path / "tfds" / "rows" / "1.0.0"


@pytest.mark.parametrize(
    "write", [jsonl, one_json, a_csv, parquet, saved, several_splits, prepared]
)
def test_each_format_gives_the_records_that_were_written(write, tmp_path):
    """Oracle: the rows; csv has texts alone, and TFDS an order of its own."""
    wanted = ROWS
    if write is a_csv:
        wanted = [row | {"level": str(row["level"]), "tags": str(row["tags"])} for row in ROWS]
    path = write(tmp_path)
    places, found = zip(*read_records(path), strict=True)
    found = sorted(found, key=lambda row: int(row["level"]))
    assert found == wanted
    assert len(set(places)) == 2
    # All columns reach the example
    examples = sorted(read_questions(path), key=lambda row: int(row["level"]))
    assert examples == wanted


def test_every_ending_of_data_on_the_hub_has_a_reader():
    """Oracle: the other of the two lists."""
    assert {*DATA, ".arrow"} == set(READERS)


def test_a_split_of_a_saved_dataset_is_read_alone(tmp_path):
    """Oracle: the row that was selected, and the message."""
    path = several_splits(tmp_path)
    assert [record for _, record in read_records(path, "test")] == ROWS[1:]
    with pytest.raises(ValueError, match="has no split='dev'; choose from train, test"):
        list(read_records(path, "dev"))
    with pytest.raises(ValueError, match="has a single split: leave split='test' out"):
        list(read_records(saved(tmp_path), "test"))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("q.jsonl", b'{"a": 1}\n{"a"', "q.jsonl, line 2 is not JSON"),
        ("q.jsonl", b"[1]", "q.jsonl, line 1 is not a JSON object"),
        ("q.jsonl", b"\n", "q.jsonl' holds no records"),
        ("q.json", b'{"a": 1}', "q.json is not a list of objects"),
        ("q.json", b"[1]", "q.json, entry 1 is not a JSON object"),
        ("q.json", b'{"a": 1}\n{"a": 2}', "or name a file of lines .jsonl"),
        ("q.csv", b"a,b\n1,2\n3\n", "q.csv, line 3 has not one field for each of a, b; quote"),
        ("q.csv", b"a,b\n1,2,3\n", "q.csv, line 2 has not one field for each of a, b"),
        ("q.csv", b'a,b\n"1,2\n', "is not csv: unexpected end of data"),
        ("q.csv", b"a\n\xff\n", "is not csv"),
        ("q.csv", b"a,b\n", "q.csv' holds no records"),
        ("q.parquet", b"PAR1 and no more", "q.parquet is no parquet file, or is damaged"),
        ("q.txt", b"a", "ends in '.txt', which is not read; give a jsonl, json, csv or parquet"),
        ("q.xlsx", b"a", "ends in '.xlsx', which is not read"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_way_on(name, content, words, tmp_path):
    """Oracle: the message."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        list(read_records(tmp_path / name))
    assert words in str(error.value)


def test_folders_that_are_no_data_or_lost_a_file_are_named(tmp_path):
    """Oracle: the messages."""
    empty = pyarrow.table({"question": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="none.parquet' holds no records"):
        list(read_records(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match="is a folder without state.json and dataset_info.json"):
        list(read_records(tmp_path))
    path = saved(tmp_path)
    next(path.glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="arrow is missing or damaged.*save the data set anew"):
        list(read_records(path))


def test_what_json_cannot_hold_becomes_a_text(tmp_path):
    """Oracle: by hand, for a parquet file; then what json writes of the whole record."""
    day = datetime.date(2024, 2, 29)
    row = {
        "time": datetime.datetime(2024, 2, 29, 12, 30),
        "day": day,
        "price": decimal.Decimal("1.50"),
        "missing": float("nan"),
        "endless": float("inf"),
        "bytes": b"Gr\xc3\xb6\xc3\x9fe",
        "image": {"bytes": b"\xff\x00", "days": [day]},
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "q.parquet")
    ((_, found),) = read_records(tmp_path / "q.parquet")
    assert found == {
        "time": "2024-02-29 12:30:00",
        "day": "2024-02-29",
        "price": "1.50",
        "missing": None,
        "endless": "inf",
        "bytes": "Größe",
        "image": {"bytes": {"base64": "/wA="}, "days": ["2024-02-29"]},
    }
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"%s": 3}', '{"%s": [3]}', '{"%s": [{}]}'])
def test_a_damaged_description_of_a_saved_dataset_is_named(text, tmp_path):
    """Oracle: the file in the message."""
    path = saved(tmp_path)
    (path / "state.json").write_text(text.replace("%s", "_data_files"))
    with pytest.raises(ValueError, match="^.*saved/state.json .*; save the data set anew$"):
        list(read_records(path))
    path = several_splits(tmp_path)
    (path / "dataset_dict.json").write_text(text.replace("%s", "splits"))
    with pytest.raises(ValueError, match="dataset_dict.json .*; save the data set anew$|no split="):
        list(read_records(path))


BUILD = """
import json, resource, sys
from deepseek_jax.data.messages import read_conversations
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path, small = sys.argv[1:]
read_conversations(small, small + ".data")
before = peak()
source = read_conversations(path, path + ".data")
sizes = (len(source[i]["messages"][0]["content"]) for i in range(len(source)))
print(json.dumps([sum(sizes), peak() - before]))
"""
STREAM = """
import json, resource, sys
from deepseek_jax.data.records import read_records
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
path, small = sys.argv[1:]
assert sum(1 for _ in read_records(small)) == 10
before = peak()
count = sum(len(record["text"]) for _, record in read_records(path))
print(json.dumps([count, peak() - before]))
"""
GIGABYTE, CHUNK = 2**30, 2**12


def write_texts(path, count):
    """count texts of CHUNK letters, all different, as jsonl or parquet without compression."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", np.uint8)
    texts = (
        letters[rng.integers(len(letters), size=CHUNK)].tobytes().decode() for _ in range(count)
    )
    if path.suffix == ".jsonl":
        with open(path, "w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        return
    schema = pyarrow.schema({"text": pyarrow.string()})
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none") as file:
        for _ in range(0, count, 8192):
            rows = [text for text, _ in zip(texts, range(8192), strict=False)]
            file.write_table(pyarrow.table({"text": rows}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix, program", [(".jsonl", STREAM), (".parquet", STREAM), (".jsonl", BUILD)]
)
def test_a_gigabyte_is_read_in_a_few_megabytes(suffix, program, tmp_path):
    """Oracle: the process's peak memory, which rises by less than 200 MB over that of a small file; also
    where TFDS writes and shuffles it.
    """
    path, small = tmp_path / f"all{suffix}", tmp_path / f"small{suffix}"
    write_texts(path, GIGABYTE // CHUNK)
    write_texts(small, 10)
    command = [sys.executable, "-c", program, path, small]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    count, rise = json.loads(printed.splitlines()[-1])
    assert path.stat().st_size > 0.95 * GIGABYTE and count > 0.9 * GIGABYTE
    assert rise < 200, f"{rise:.0f} MB"
