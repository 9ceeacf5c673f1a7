"""The custom metrics API, answered from Prometheus: what prometheus-adapter does, for the one metric of the chart.

Arguments: port, certificate, key, URL of Prometheus, name of the metric, its query by pod.
"""

import json
import ssl
import sys
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

port, certificate, key, prometheus, metric, query = sys.argv[1:] if len(sys.argv) == 7 else ("0", *[""] * 5)
GROUP = "custom.metrics.k8s.io/v1beta1"


def values() -> list[dict[str, object]]:
    """The metric of every pod that Prometheus knows."""
    url = f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}"
    with urllib.request.urlopen(url, timeout=10) as page:
        found = json.load(page)["data"]["result"]
    return [
        {
            "describedObject": {"kind": "Pod", "name": each["metric"]["pod"], "apiVersion": "/v1"},
            "metricName": metric,
            "timestamp": "2026-01-01T00:00:00Z",
            "value": f"{round(float(each['value'][1]) * 1e6)}u",
        }
        for each in found
    ]


class Handler(BaseHTTPRequestHandler):
    """Lists the metric, or answers it for all pods."""

    def do_GET(self) -> None:
        if urllib.parse.unquote(urllib.parse.urlparse(self.path).path).endswith(f"/pods/*/{metric}"):
            body: dict[str, object] = {
                "kind": "MetricValueList",
                "apiVersion": GROUP,
                "metadata": {},
                "items": values(),
            }
        else:
            resource = {"name": f"pods/{metric}", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
            body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [resource]}
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    server = HTTPServer(("0.0.0.0", int(port)), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
