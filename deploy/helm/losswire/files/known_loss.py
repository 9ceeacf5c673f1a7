"""Evaluates a known loss on each of two Services of losswire and reads its metrics. Exits 1 where anything differs.

Arguments: two targets, the URL of the metrics, and, with TLS, the folder with ca.crt, and tls.crt and tls.key where the
server demands a certificate. LOSSWIRE_TOKEN_FILE is the file of a token where it asks for one.
"""

import os
import sys
import urllib.request
from pathlib import Path

import losswire

LOGITS = [[0.7459, 0.5881, 0.4795], [0.2894, 0.0568, 0.3439], [0.6124, 0.7558, 0.4308]]
TARGET = [0, 1, 1]
# Mean of the target's negative log-softmax, by hand: (0.9632 + 1.2794 + 0.9512) / 3.
LOSS = 1.0646

single, headless, metrics, *folder = sys.argv[1:]
tls = None
if folder:
    path = Path(folder[0])
    own = (path / "tls.crt", path / "tls.key") if (path / "tls.key").exists() else (None, None)
    tls = losswire.Tls(path / "ca.crt", *own)
token = Path(os.environ["LOSSWIRE_TOKEN_FILE"]) if "LOSSWIRE_TOKEN_FILE" in os.environ else None
readable = "LOSSWIRE_TOKEN_WITHOUT_TLS" in os.environ
for target in (single, f"dns:///{headless}"):
    with losswire.Client(target, tls=tls, timeout_s=30.0, token=token, token_without_tls=readable) as client:
        losses = [float(client.cross_entropy(LOGITS, TARGET)) for _ in range(10)]
        server = client.info()
    print(f"{target}: losswire {server.version} on {server.device}, loss {losses[0]:.4f}, expected {LOSS}")
    if not all(abs(loss - LOSS) < 5e-5 for loss in losses):
        sys.exit(f"{target} answered {losses}; expected {LOSS}")
with urllib.request.urlopen(metrics, timeout=10) as page:
    evaluations = [line for line in page.read().decode().splitlines() if line.startswith("losswire_positions_total{")]
print(*evaluations, sep="\n")
if not evaluations:
    sys.exit(f"{metrics} shows no losswire_positions_total")
