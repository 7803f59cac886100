"""Python's garbage collector, and what a model's process keeps for good."""

import gc


def leave_out_what_is_loaded() -> None:
    """Make collections look at what comes from now on alone; for the end of loading.

    A full collection looks at every object: 0.1 s where torch is loaded (Zen 4), and the batch that
    it falls into waits for it.
    """
    gc.collect()
    gc.freeze()
