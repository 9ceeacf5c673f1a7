"""An alert reaches a person: a real server stops, a real Prometheus notices, a real Alertmanager sends it on."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus import eventually, free_port, start_prometheus, tool, wait_until_ready
from servers import start_server

Alert = dict[str, Any]


@contextmanager
def receiver() -> Iterator[tuple[str, list[Alert]]]:
    """A webhook's URL, and the alerts that were sent to it."""
    alerts: list[Alert] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            alerts.extend(json.loads(body)["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", alerts
        server.shutdown()


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """The address of an Alertmanager that sends everything to a webhook."""
    config = {
        "route": {"receiver": "person", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"},
        "receivers": [{"name": "person", "webhook_configs": [{"url": webhook}]}],
    }
    (folder / "alertmanager.yml").write_text(json.dumps(config))
    address, log = f"127.0.0.1:{free_port()}", folder / "alertmanager.log"
    flags = [f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alerts", "--cluster.listen-address="]
    with log.open("w") as output:
        process = subprocess.Popen(
            [tool("prometheus-alertmanager"), *flags, f"--web.listen-address={address}"], stdout=output, stderr=output
        )
    try:
        wait_until_ready(process, address, log)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.timeout(180)
def test_a_service_whose_last_replica_stops_reaches_a_person_with_its_runbook(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--threads=1")
    with receiver() as (webhook, alerts), alertmanager(tmp_path, webhook) as address:
        prometheus = start_prometheus(tmp_path, [server.metrics_address], address)
        try:
            eventually(lambda: prometheus.query("job:losswire_ready:sum == 1"), "the server is seen ready")
            names = {alert["labels"]["alertname"] for alert in alerts}
            assert "LosswireNoReadyReplica" not in names
            assert server.stop() == 0

            def told() -> list[Alert]:
                return [alert for alert in alerts if alert["labels"]["alertname"] == "LosswireNoReadyReplica"]

            [alert, *_] = eventually(told, "the alert at the webhook")
        finally:
            prometheus.stop()
    assert alert["status"] == "firing"
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == "No replica of losswire is ready"
    assert alert["annotations"]["runbook_url"] == "docs/runbooks.md#losswirenoreadyreplica"
