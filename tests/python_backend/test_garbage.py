from __future__ import annotations

import subprocess
import sys

# In a process of its own: what is left out of collections stays so until the end.
MEASURED = """
import gc

loaded = [[index] for index in range(100_000)]
gc.collect()
before = len(gc.get_objects())

from bertron_backend.garbage import leave_out_what_is_loaded

lost = []
lost.append(lost)
del lost
leave_out_what_is_loaded()
print(before, len(gc.get_objects()), gc.get_freeze_count(), gc.collect())

later = []
later.append(later)
del later
print(gc.collect())
"""


def test_collections_look_only_at_what_comes_after() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=60, check=True
    )
    first, second = done.stdout.splitlines()
    before, looked_at, left_out, found = map(int, first.split())
    assert before > 100_000
    assert left_out > 100_000
    assert looked_at < 1000
    assert found == 0  # what was garbage by then is not kept
    assert int(second) == 1  # and what becomes garbage later is found
