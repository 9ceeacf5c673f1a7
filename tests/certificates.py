"""Certificates of an authority that a test makes up."""

from __future__ import annotations

from pathlib import Path

import trustme


def issue_certificates(folder: Path) -> None:
    """Write ca.pem to `folder`, and key and certificate of a server, "localhost", and a client, "worker.example"."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("server", "localhost"), ("client", "worker.example")):
        issued = authority.issue_cert(identity)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
