"""Run a replicator: `python -m replicator`."""

import sys

from replicator.app import main

if __name__ == "__main__":
    sys.exit(main())
