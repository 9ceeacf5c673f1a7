"""The metrics of one server at one moment."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from losswire.errors import InvalidArgumentError, LosswireError

DEFAULT_PORT: Final = 9464

MAX_PAGE_BYTES: Final = 16 * 1024 * 1024
"""More than any server tells."""

Labels = Mapping[str, str]


class ScrapeError(LosswireError):
    """A server's metrics cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a server told.

    Attributes:
        moment: When, in seconds of `time.monotonic`.
        series: Labels and value of every series, by its name.
    """

    moment: float
    series: Mapping[str, list[tuple[Labels, float]]]

    def each(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """The series of a name that have these labels."""
        return ((own, value) for own, value in self.series.get(name, ()) if labels.items() <= own.items())


def metrics_url(target: str) -> str:
    """Where a server's metrics are.

    >>> metrics_url("losswire-0"), metrics_url("10.0.0.1:1234"), metrics_url("https://losswire.example/metrics")
    ('http://losswire-0:9464/metrics', 'http://10.0.0.1:1234/metrics', 'https://losswire.example/metrics')

    Raises:
        InvalidArgumentError: if it is no address.
    """
    if target.startswith(("http://", "https://")):
        return target
    host, colon, port = target.rpartition(":")
    if not colon or target.endswith("]"):
        host, port = target, str(DEFAULT_PORT)
    if not host or not port.isdecimal() or "/" in target:
        raise InvalidArgumentError(
            f"target is {target!r}; expected HOST, HOST:PORT or a URL of a server's metrics", field="target"
        )
    return f"http://{host}:{port}/metrics"


def scrape(url: str, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Scrape:
    """Ask a server for its metrics.

    Raises:
        ScrapeError: if it does not answer in time, or with anything but the metrics of a losswire server.
    """
    # Straight to the server, whatever proxy is set for the rest of the world.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as reply:
            page = reply.read(MAX_PAGE_BYTES)
    except http.client.HTTPException as error:
        # The gRPC port answers with a frame of HTTP/2.
        raise ScrapeError(
            f"{url} cannot be read, as its answer is no HTTP/1.1 ({type(error).__name__}); "
            f"a losswire server's metrics port is {DEFAULT_PORT} by default"
        ) from error
    except urllib.error.URLError as error:
        raise ScrapeError(f"{url} cannot be read: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise ScrapeError(f"{url} cannot be read: {error}") from error
    return read_page(page, url, clock())


def read_page(page: bytes, url: str, moment: float) -> Scrape:
    """The metrics on a page.

    Raises:
        ScrapeError: if they are not those of a losswire server.
    """
    series: dict[str, list[tuple[Labels, float]]] = {}
    try:
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                series.setdefault(sample.name, []).append((sample.labels, sample.value))
    except ValueError as error:
        raise ScrapeError(f"{url} tells no metrics: {' '.join(str(error).split())[:80]}") from error
    if "losswire_build_info" not in series:
        raise ScrapeError(f"{url} tells no metrics of a losswire server; its metrics port is {DEFAULT_PORT} by default")
    return Scrape(moment, series)
