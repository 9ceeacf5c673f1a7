"""Write the tables of docs/performance.md from the newest file of each benchmark: `python -m benchmarks.tables`.

A table lies between `<!-- table: NAME -->` and `<!-- end -->`; the text around it is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer
from rich.console import Console

from benchmarks.results import PARTS, Result, newest, short

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_QUOTIENTS = ("kernel_to_read_best", "kernel_to_read", "eager_to_kernel_best", "eager_to_kernel", "compile_to_kernel")
LARGE_CASES = ("512x32000 ", "256x128256 ", "128x128256 ", "4x19x")


def machine(result: Result) -> str:
    """One paragraph on what a part was measured."""
    found, versions, memory = result["machine"], result["versions"], result["machine"]["memory_bytes"] / 2**30
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "grpcio"))
    server = f"backend {result['server']['backend']}, {result['server']['threads']} threads"
    return f"{found['device']}, {found['cores']} cores, {memory:.0f} GiB; {packages}; {server}; {result['date']}.\n"


def service(result: Result) -> str:
    """Streams and small calls beside the limit, and the client beside the raw sender."""
    rows = []
    for row in result["measures"]:
        if "limit" in row["median"]:
            ours, limit, client = (row["median"].get(name) for name in ("service", "limit", "client"))
            share = f"{row['service_to_limit']:.2f}"
            rows.append([row["name"], row["unit"], short(limit), short(ours), share, short(client) if client else ""])
        else:
            rows.append([row["name"], row["unit"], "", short(row["median"]["service"]), "", ""])
    return markdown(["", "", "limit", "losswire", "share", "its Python client"], rows)


def small(result: Result) -> str:
    """Microseconds an evaluation, by each way to ask for it."""
    names = [name for name in ("stub", "generated", "client", "stream", "session") if name in _medians(result)]
    rows = []
    for row in result["measures"]:
        ratios = [row["client_to_stub"], row["stub_to_stream"], row["client_to_session"]]
        medians = [short(row["median"][name]) for name in names]
        rows.append([row["name"], *medians, *(f"{ratio:.2f}" if ratio else "" for ratio in ratios)])
    return markdown(["us", *names, "client / stub", "stub / stream", "client / session"], rows)


def load(result: Result) -> str:
    """Percentiles under load, of the service and of the empty handler."""
    percentiles = ("p50", "p95", "p99")
    titles = [f"{who} {name}" for who in ("losswire", "empty") for name in percentiles]
    rows = []
    for row in result["measures"]:
        medians = [short(row["median"][f"{who} {name}"]) for who in ("service", "limit") for name in percentiles]
        rows.append([row["name"], f"{row['at']:,.0f}", *medians, f"{row['service p99_to_limit p99']:.1f}"])
    return markdown(["ms", "calls/s", *titles, "p99 / p99"], rows)


def cost(result: Result) -> str:
    """Time and bytes of one evaluation as it grows."""
    rows = []
    for row in result["measures"]:
        median, logits_bytes = row["median"], row["at"]
        sent = result["sent_bytes"][f"{logits_bytes:.0f}"]
        rate = logits_bytes / median["client"] / 1e6
        times = [short(median[name]) for name in ("client", "limit", "compute")]
        rows.append([row["name"], *times, f"{rate:.2g}", f"{sent - logits_bytes:,.0f}"])
    return markdown(["logits", "losswire, ms", "limit, ms", "kernel, ms", "GB/s", "bytes sent besides"], rows)


def peers(result: Result) -> str:
    """What each contestant does, and how many times as good losswire is."""
    heads = [f"{row['name']}, {row['unit']}" for row in result["measures"]]
    rows = []
    for name, title in result["titles"].items():
        if name in _medians(result):
            cells = [_figure_and_gain(row, name) for row in result["measures"]]
            rows.append([title, *cells])
    absent = "".join(f"\nAbsent: {who}: {reason}\n" for who, reason in result["absent"].items())
    return markdown(["", *heads], rows) + absent


def kernels(result: Result) -> str:
    """The kernel beside reading, eager and torch.compile."""
    rows = []
    for case in result["cases"]:
        quotients = [case[name] for name in _QUOTIENTS]
        # A small shape is in the cache, and reading it is no limit.
        if not case["name"].startswith(LARGE_CASES):
            quotients[:2] = None, None
        rows.append([case["name"], *(f"{value:.2f}" if value else "" for value in quotients)])
    heads = ["kernel / read, best", "median", "eager / kernel, best", "median", "torch.compile / kernel, median"]
    return markdown(["", *heads], rows)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "machine": ("service", machine),
    "service": ("service", service),
    "small": ("small", small),
    "load": ("load", load),
    "cost": ("cost", cost),
    "peers": ("peers", peers),
    "kernels": ("kernels", kernels),
}


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, numbers to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def fill(page: str, found: dict[str, Result]) -> str:
    """The page with its tables made anew; those without results stay as they are.

    Args:
        page: Its text.
        found: Results by part.
    """

    def make(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        part, table = TABLES[name]
        return f"{begin}{table(found[part])}{end}" if part in found else match.group()

    return _TABLE.sub(make, page)


def main() -> None:
    """Make the tables from what there are results for."""
    results = {part: newest(part) for part in PARTS}
    PAGE.write_text(fill(PAGE.read_text(), {part: found for part, found in results.items() if found}))
    Console().print(str(PAGE))


def _medians(result: Result) -> set[str]:
    return {name for row in result["measures"] for name in row["median"]}


def _figure_and_gain(row: Result, name: str) -> str:
    """Such as "0.13 (4.1x)": a figure, and how many times as good ours is."""
    if name not in row["median"]:
        return ""
    figure, ratio = short(row["median"][name]), row.get(f"losswire_to_{name}")
    if not ratio:
        return figure
    return f"{figure} ({1 / ratio if row['unit'] == 'ms' else ratio:.1f}x)"


if __name__ == "__main__":
    typer.run(main)
