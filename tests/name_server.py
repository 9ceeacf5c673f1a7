"""A name server for one name, whose addresses a test changes."""

from __future__ import annotations

import socket
import threading

import dns.exception
import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype
import dns.rrset

NAME = "replicas.losswire.test."


class NameServer:
    """Answers for `NAME`, over UDP on a free port of the loopback interface, until it is closed.

    Attributes:
        hosts: The IPv4 addresses behind the name.
        asked: How often it was asked for them.
    """

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._answer, name="name-server", daemon=True)
        self._thread.start()

    def target(self, port: int) -> str:
        """What a client is given to find the servers behind the name."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{NAME}:{port}"

    def close(self) -> None:
        """Answer no more."""
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while True:
            try:
                asked, caller = self._socket.recvfrom(4096)
            except OSError:
                return
            if not asked:
                return
            try:
                reply = dns.message.make_response(dns.message.from_wire(asked))
            except dns.exception.DNSException:
                continue
            reply.flags |= dns.flags.AA | dns.flags.RA
            [question] = reply.question
            if question.rdtype == dns.rdatatype.A and question.name.to_text().lower() == NAME:
                self.asked += 1
                reply.answer.append(dns.rrset.from_text_list(question.name, 1, "IN", "A", self.hosts))
            self._socket.sendto(reply.to_wire(), caller)
