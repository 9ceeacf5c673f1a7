"""A server without one of its defences, to see that a test notices: `start_server(…, command=without("…"))`."""

from __future__ import annotations

import sys

from losswire_server import cli, limits


def without(*options: str) -> tuple[str, ...]:
    """The command of a server that does not give gRPC some of its options, or other values: "grpc.name=-1"."""
    return (sys.executable, __file__, ",".join(options))


def main() -> int:
    """Run the server, with the flags that follow the options."""
    changed = dict(option.partition("=")[::2] for option in sys.argv[1].split(","))
    assert changed.keys() <= dict(limits.SERVICE_OPTIONS).keys(), "what is not there cannot be left out"
    kept = [(name, value) for name, value in limits.SERVICE_OPTIONS if name not in changed]
    kept += [(name, int(value)) for name, value in changed.items() if value]
    limits.SERVICE_OPTIONS = tuple(kept)  # type: ignore[misc, assignment]
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
