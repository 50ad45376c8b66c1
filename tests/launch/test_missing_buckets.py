"""What is not there in a bucket, and a bucket that does not answer."""

import os
import re
import time

import pytest

from deepseek_jax import files
from tests.in_process import launched
from tests.launch.test_train import ROOT

SFT = f"--config={ROOT}/configs/sft_small.py"
# Their program and arguments; PLACE is an address
CASES = {
    "data": ("train", SFT, "--config.data.path=PLACE.jsonl"),
    "start": ("train", SFT, "--config.base=None", "--config.init_from=PLACE"),
    "pages": ("train", SFT, "--config.data.path=PLACE"),
    "checkpoint": ("evaluate", "--checkpoint=PLACE", "--data=arithmetic"),
    "from": ("convert", "--from=PLACE", "--to=out"),
    "gguf": ("convert", "--from=PLACE.gguf", "--to=out"),
}


@pytest.mark.parametrize("where", ["gs://{}/none", "gs://no-such-bucket/none"])
@pytest.mark.parametrize("name", CASES)
def test_what_a_bucket_does_not_have_is_one_message(name, where, bucket, tmp_path, monkeypatch):
    """Oracle: exit status 2 and one message with the address; no file of a run."""
    monkeypatch.chdir(tmp_path)
    place = where.format(bucket.name)
    program, *given = CASES[name]
    given = [each.replace("PLACE", place) for each in given]
    given += ["--workdir=w"] * (program != "convert")
    end = launched(program, *given)
    (said,) = re.findall("^error: .*", end.err, re.MULTILINE)
    assert end.status == 2 and "Traceback" not in end.err, end.err
    assert place.removeprefix("gs://") in said.replace("/o/", "/").replace("%2F", "/"), said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_bucket_that_does_not_answer_is_waited_for_to_a_limit(capsys, monkeypatch, tmp_path):
    """Oracle: by hand: a line after SAY_SECONDS, one message after ANSWER_SECONDS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "SAY_SECONDS", 0.2)
    monkeypatch.setattr(files, "ANSWER_SECONDS", 1.0)

    def exists(path):
        # Local paths are of this class too
        return time.sleep(5) if files.is_remote(path) else os.path.exists(path)

    monkeypatch.setattr(files.Path("gs://a/b").__class__, "exists", exists)
    end = launched("train", SFT, "--config.data.path=gs://silent/x.jsonl", "--workdir=w")
    assert end.status == 2 and end.err.count("error: ") == 1, end.err
    assert "waiting for gs://silent to answer, at most 1 s\n" in end.out
    assert "config.data: gs://silent has not answered in 1 s; look at the network" in end.err
