"""The command `losswire`, and `python -m losswire`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exits 0 on success, 1 on failure, 2 on wrong usage and 130 after Ctrl-C."""
    try:
        from losswire.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"prometheus_client", "rich", "typer"}:
            raise
        sys.exit('losswire: the commands need more packages: pip install "losswire[cli]"')
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="losswire")


if __name__ == "__main__":
    main()
