"""`python -m losswire_server`."""

import sys

from losswire_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
