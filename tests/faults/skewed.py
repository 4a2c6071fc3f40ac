"""Run a program with a clock that is wrong: `python skewed.py SECONDS MODULE [ARGUMENT ...]`.

Wrong is `time.time_ns`, by which a site says when something was pushed, and nothing else: grpc asks
`time.time` for its deadlines.  (Debian's libfaketime makes `time.sleep` of Python 3.11 fail.)
"""

from __future__ import annotations

import runpy
import sys
import time


def main() -> None:
    """Shift the clock, then be the program."""
    seconds, module = int(sys.argv[1]), sys.argv[2]
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + seconds * 1_000_000_000

    time.time_ns = time_ns
    sys.argv[:] = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
