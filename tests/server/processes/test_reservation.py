"""The port of several processes, held before they listen."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from losswire_server.ports import StartError
from losswire_server.processes.reservation import PortReservation


@pytest.fixture
def reservation() -> Iterator[PortReservation]:
    """A free port, held."""
    reservation = PortReservation("127.0.0.1:0")
    yield reservation
    reservation.close()


def endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def listener(address: str, *, shares: bool) -> socket.socket:
    """What a server listens with."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
    try:
        listening.bind(endpoint(address))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def test_several_sockets_that_share_the_port_can_listen(reservation: PortReservation) -> None:
    assert reservation.address != "127.0.0.1:0"
    with listener(reservation.address, shares=True), listener(reservation.address, shares=True):
        socket.create_connection(endpoint(reservation.address)).close()


def test_nobody_is_connected_to_a_port_that_is_only_held(reservation: PortReservation) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(endpoint(reservation.address))


def test_a_server_that_does_not_share_is_kept_off(reservation: PortReservation) -> None:
    with pytest.raises(OSError, match="in use"):
        listener(reservation.address, shares=False)


def test_a_port_that_is_held_cannot_be_held_again(reservation: PortReservation) -> None:
    with pytest.raises(StartError, match=f"^listen: {reservation.address} cannot be bound; is it taken"):
        PortReservation(reservation.address)


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_another_server_has_cannot_be_held(reservation: PortReservation, shares: bool) -> None:
    reservation.close()
    with listener(reservation.address, shares=shares), pytest.raises(StartError, match="is it taken"):
        PortReservation(reservation.address)


def test_a_port_with_connections_of_an_ended_server_can_be_held(reservation: PortReservation) -> None:
    with listener(reservation.address, shares=True) as listening:
        with socket.create_connection(endpoint(reservation.address)) as client:
            # Closed from this side first, the connection lingers in TIME_WAIT.
            listening.accept()[0].close()
            assert client.recv(1) == b""
        reservation.close()
    PortReservation(reservation.address).close()


def test_an_address_that_this_machine_does_not_have_is_named() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737).
    with pytest.raises(StartError, match=r"^listen: 192\.0\.2\.1:0 cannot be bound; Cannot assign"):
        PortReservation("192.0.2.1:0")


def test_all_addresses_of_a_name_are_held_with_one_port() -> None:
    reservation = PortReservation("localhost:0")
    try:
        port = endpoint(reservation.address)[1]
        with pytest.raises(StartError):
            PortReservation(f"127.0.0.1:{port}")
    finally:
        reservation.close()
