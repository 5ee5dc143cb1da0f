"""`python -m fornix` is the command `fornix`."""

import sys

from fornix.cli import main

if __name__ == "__main__":
    sys.exit(main())
