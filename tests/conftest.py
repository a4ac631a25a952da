"""Fixtures for the unit tests; ../conftest.py is about the notebooks."""

import socket

import pytest


@pytest.fixture(autouse=True)
def own_seed(monkeypatch):
    """A unit test states its seeds itself: MINILLAMA_SEED is for notebooks."""
    monkeypatch.delenv("MINILLAMA_SEED", raising=False)


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test if it opens an internet connection or looks up a host name.

    Asked for by name and never automatic: a notebook's kernel is reached over the
    loopback interface.
    """

    def refuse(*arguments, **_):
        raise AssertionError(f"network access: {arguments}")

    def only_unix(method):
        def guarded(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(address)
            return method(self, address)

        return guarded

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(
            socket.socket, name, only_unix(getattr(socket.socket, name))
        )
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
