"""`python -m octavo`: the `octavo` command, where the script is not on the path."""

from __future__ import annotations

import sys

from octavo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
