"""Pages of metrics that are read, and those that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import losswire
from losswire.watch.scrape import ScrapeError, metrics_url, read_page, scrape

PAGE = b"""# TYPE losswire_build info
losswire_build_info{version="0.1.0"} 1.0
# TYPE losswire_requests counter
losswire_requests_total{method="Evaluate",code="OK"} 3.0
losswire_requests_total{method="GetInfo",code="OK"} 5.0
"""


@pytest.fixture
def pages() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a web server, and what it answers by path."""
    found: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = found.get(self.path)
            self.send_response(200 if page is not None else 404)
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("localhost", "http://localhost:9464/metrics"),
        ("[::1]", "http://[::1]:9464/metrics"),
        ("[::1]:7", "http://[::1]:7/metrics"),
        ("losswire-0.losswire:9464", "http://losswire-0.losswire:9464/metrics"),
        ("http://a/b", "http://a/b"),
    ],
)
def test_a_target_is_a_host_a_port_or_a_url(target: str, url: str) -> None:
    assert metrics_url(target) == url


@pytest.mark.parametrize("target", ["", ":9464", "localhost:port", "localhost:9464/metrics", "ftp://localhost"])
def test_what_is_no_address_is_refused(target: str) -> None:
    with pytest.raises(losswire.InvalidArgumentError, match="expected HOST, HOST:PORT or a URL") as caught:
        metrics_url(target)
    assert caught.value.field == "target"


def test_series_are_found_by_name_and_labels(pages: tuple[str, dict[str, bytes]]) -> None:
    address, found = pages
    found["/metrics"] = PAGE
    told = scrape(metrics_url(address), 5.0, lambda: 42.0)
    assert told.moment == 42.0
    assert [value for _, value in told.each("losswire_requests_total", method="Evaluate")] == [3.0]
    assert [value for _, value in told.each("losswire_requests_total")] == [3.0, 5.0]
    assert list(told.each("absent")) == []


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"<html>hello</html>", "tells no metrics"),
        (b"\xff\xfe", "tells no metrics"),
        (b"", "tells no metrics of a losswire server"),
        (b"# TYPE other counter\nother_total 1.0\n", "tells no metrics of a losswire server"),
    ],
)
def test_a_page_that_is_none_of_ours_says_so_in_a_sentence(page: bytes, why: str) -> None:
    with pytest.raises(ScrapeError, match=f"^http://x {why}"):
        read_page(page, "http://x", 0.0)


def test_a_page_that_is_not_there_is_an_error(pages: tuple[str, dict[str, bytes]]) -> None:
    with pytest.raises(ScrapeError, match="cannot be read: Not Found"):
        scrape(metrics_url(pages[0]), 5.0)


def test_nobody_who_listens_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = metrics_url(f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(ScrapeError, match=r"cannot be read: .*refused"):
        scrape(url, 5.0)


def test_an_answer_that_is_no_http_is_an_error_that_names_the_right_port() -> None:
    def answer() -> None:
        connection, _ = http2.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(bytes.fromhex("000006040000000000000500004000"))

    with socket.create_server(("127.0.0.1", 0)) as http2:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ScrapeError, match=r"no HTTP/1.1 \(BadStatusLine\); .*metrics port is 9464"):
            scrape(metrics_url(f"127.0.0.1:{http2.getsockname()[1]}"), 5.0)


def test_a_server_that_does_not_answer_in_time_is_an_error() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ScrapeError, match=r"cannot be read: .*timed out"):
            scrape(metrics_url(f"127.0.0.1:{silent.getsockname()[1]}"), 0.1)


def test_the_proxy_of_the_environment_is_not_asked(
    pages: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, found = pages
    found["/metrics"] = PAGE
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    scrape(metrics_url(address), 5.0)
