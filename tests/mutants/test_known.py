"""The known faults: each can be planted in the code as it is now."""

from tests.mutants import known
from tests.mutants.reached import PACKAGE


def test_every_known_fault_has_its_place_in_the_code():
    """Oracle: `planted` refuses a text that does not stand in its file once, and the source differs."""
    for fault in known.ROWS + known.HISTORY:
        assert fault.planted().source != (PACKAGE / fault.path).read_bytes(), fault.name
