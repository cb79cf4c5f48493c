"""Reachability of the Hub: a server that listens, one that does not, and a proxy."""

import socket

import pytest
from huggingface_hub import constants

from posttrain import hub


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch):
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


def test_a_listening_server_is_reachable_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.work_offline_if_unreachable()
    assert constants.HF_HUB_OFFLINE is False


def test_without_a_server_the_client_goes_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    hub.work_offline_if_unreachable()
    assert constants.HF_HUB_OFFLINE is True


def test_through_a_proxy_it_is_taken_to_be_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert hub.reachable()
