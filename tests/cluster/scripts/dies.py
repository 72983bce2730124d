"""tiny.py, in which a worker kills itself (kill -9) at a chosen moment of its pushes.

dies.py before|one|all MARK [tiny's arguments]     once; MARK is made then
dies.py deadly SAMPLE [tiny's arguments]           whenever it reads that sample
"""

import os
import signal
import sys
from pathlib import Path

import tiny

from hubring_worker.lanes import Lanes

STEP = 3


def die_once(phase: str, mark: Path) -> None:
    """`before` a push reached any shard, when it reached `one`, or when `all` have acknowledged
    and the coordinator has not heard of it.
    """
    push_to_all, steps = Lanes.map, iter(range(10**9))

    def push(lanes, calls):
        # Pulls and the first weights come through here too: pushes are partials.
        if not hasattr(calls[0], "func") or mark.exists() or next(steps) != STEP:
            return push_to_all(lanes, calls)
        mark.touch()
        if phase == "one":
            calls[0]()
        elif phase == "all":
            push_to_all(lanes, calls)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    Lanes.map = push


def die_of(deadly: int) -> None:
    class Deadly(tiny.TensorDataset):
        def __getitem__(self, index):
            if index == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    tiny.TensorDataset = Deadly


if __name__ == "__main__":
    phase, argument = sys.argv[1:3]
    sys.argv[1:3] = []
    if phase == "deadly":
        die_of(int(argument))
    else:
        die_once(phase, Path(argument))
    tiny.main()
