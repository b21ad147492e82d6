"""`python -m mcode` is the command `mcode`."""

import sys

from mcode.cli import main

if __name__ == "__main__":
    sys.exit(main())
