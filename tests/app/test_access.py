"""Whose request it is."""

import pytest
from starlette.requests import HTTPConnection

from app.errors import Problem
from app.http.access import Access


def request(host: str | None, **headers: str) -> HTTPConnection:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "client": host and (host, 1), "headers": raw})


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("unknown" * 100, ("unknown" * 100)[:64]),
        (None, ""),
    ],
)
def test_without_keys_a_client_is_its_address(host: str | None, client: str) -> None:
    assert Access([]).client(request(host, x_forwarded_for="1.2.3.4", x_api_key="any")) == client


def test_with_keys_it_is_its_key_wherever_it_comes_from() -> None:
    access = Access(["one", "two"])
    assert access.client(request("10.0.0.1", authorization="bearer two")) == "key 2"
    assert access.client(request("10.0.0.2", x_api_key=" two ")) == "key 2"


@pytest.mark.parametrize("authorization", ["two", "Bearer", "Bearer ", "Bearer one two", "Basic two", "Bearer tw\xf6"])
def test_a_client_without_a_key_is_refused(authorization: str) -> None:
    with pytest.raises(Problem):
        Access(["one", "two"]).client(request("10.0.0.1", authorization=authorization))
