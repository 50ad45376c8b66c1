"""The teacher's top tokens on disk: written once, and aligned with their tokens after packing."""

import numpy as np
import pytest

from deepseek_jax.data.mixture import Mixture
from deepseek_jax.distill import cached_targets
from deepseek_jax.distill.cached_targets import write_targets
from tests.data.rows import with_rows
from tests.processes import run_two

pack_targets = with_rows(cached_targets.pack_targets)

K, TEXTS = 3, 12


def records():
    """Texts whose cached numbers encode the text and the token that they belong to."""
    for text in range(TEXTS):
        n = 4 + text % 5
        place = 100 * text + np.arange(n)
        yield {
            "tokens": place.astype(np.int32),
            "weights": np.where(np.arange(n) < 2, 0, 1 + text).astype(np.float32),
            "top_ids": (place[:, None] + 1000 * np.arange(K)).astype(np.int32),
            "top_logprobs": -place[:, None].astype(np.float32) * np.ones(K, np.float32),
            "dropped": place.astype(np.float32) / 2000,
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("targets")


def test_targets_stand_beside_their_tokens_whatever_the_packing(folder):
    """Oracle: the numbers themselves: those of a token encode its text and position."""
    source = Mixture((write_targets(records, K, folder),), (1,))
    for packing in (True, False):
        how = dict(sequence_length=16, batch_size=4, seed=0, pad_id=0, packing=packing)
        iterator = iter(pack_targets(source, **how))
        batch = next(iterator)
        iterator.close()
        tokens, real = batch["tokens"], batch["segment_ids"] > 0
        assert batch["top_ids"].shape == (4, 16, K)
        np.testing.assert_array_equal(
            batch["top_ids"][real], tokens[real][:, None] + 1000 * np.arange(K)
        )
        np.testing.assert_array_equal(batch["top_logprobs"][real][:, 0], -tokens[real])
        np.testing.assert_allclose(batch["dropped"][real], tokens[real] / 2000)
        learned = batch["loss_mask"]
        weights = batch["loss_weights"][learned]
        np.testing.assert_array_equal(weights, 1 + batch["targets"][learned] // 100)
        assert (batch["targets"][learned] % 100 >= 2).all()


def test_what_is_on_disk_is_not_written_again(folder):
    """Oracle: a second call, whose records would fail; they are in the order that they were given in."""

    def none():
        raise AssertionError("asked for records")

    source = write_targets(none, K, folder)
    assert [source[i]["tokens"][0] for i in range(TEXTS)] == [100 * i for i in range(TEXTS)]


def test_all_processes_compute_what_the_first_one_writes(monkeypatch):
    """Oracle: by hand: what is written, its folder, and what leads the others."""
    monkeypatch.setattr(cached_targets, "build", lambda *given, **more: (given, more))
    (dataset, folder), more = write_targets("records", 7, "folder", led="led")
    assert (dataset.records, folder, more) == ("records", "folder", {"led": "led"})
    shapes = {name: feature.shape for name, feature in dataset.features.items()}
    arrays = dict(top_ids=(None, 7), top_logprobs=(None, 7))
    assert shapes == dict(tokens=(None,), weights=(None,), dropped=(None,)) | arrays


ONE_OF_TWO = """
import sys
import jax
import numpy as np
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.distill.cached_targets import write_targets
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.processes import total
from tests.distill.test_cached_targets import K, records

seen = []

def together(numbers):
    # An exchange that hangs unless both processes make it
    seen.append(numbers.tolist())
    assert total(1) == 2

def computed(full_disk=False):
    for number, record in enumerate(records()):
        led(record["tokens"][:2])
        if full_disk and number == 3:
            raise OSError("No space left on device")
        yield record

led = Led(together, (np.zeros(2, np.int32),))
try:
    write_targets(lambda: computed(full_disk=True), K, folder, led=led)
except (OSError, ValueError) as error:
    print("failed:", repr(error), "behind", seen, flush=True)
for _ in range(2):
    seen.clear()
    source = write_targets(computed, K, folder, led=led)
    print("read", len(source), source[7]["tokens"][0], "behind", len(seen), flush=True)
"""


@pytest.mark.slow
def test_the_first_process_writes_what_both_compute(tmp_path):
    """Oracle: by hand: of a write that fails at its fourth text, of one that does not, and of one that finds
    the records there.
    """
    codes, outputs = run_two(ONE_OF_TWO, tmp_path)
    assert codes == [0, 0], outputs
    behind = f"behind {[[100 * text, 100 * text + 1] for text in range(4)]}"
    full = "No space left on device"
    wanted = (
        f"OSError('{full}')",
        f"ValueError('process 0 could not build the dataset: OSError: {full}')",
    )
    for output, error in zip(outputs, wanted, strict=True):
        lines = [line for line in output.splitlines() if line.startswith(("failed", "read"))]
        read = f"read {TEXTS} 700 behind"
        assert lines == [f"failed: {error} {behind}", f"{read} {TEXTS}", f"{read} 0"], output
