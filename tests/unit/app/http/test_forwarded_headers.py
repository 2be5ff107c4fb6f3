"""Who a caller is behind proxies: the nearest address that no proxy of ours has, and nothing that a caller wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config.values import parse_trusted_proxies
from app.http.forwarded_headers import find_source, is_trusted, parse_request_id

PROXIES = parse_trusted_proxies("10.0.0.0/8, fd00::/8, unix, 192.0.2.7")
PROXY, OTHER_PROXY = "10.1.2.3", "10.9.9.9"
CALLER, FORGED = "198.51.100.4", "203.0.113.66"


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        (PROXY, True),
        ("11.0.0.1", False),
        ("fd12::1", True),
        ("fe80::1", False),
        ("::ffff:10.0.0.1", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("unix", True),
        ("", False),
        ("nonsense", False),
    ],
)
def test_who_is_a_proxy_of_ours(peer: str, *, trusted: bool) -> None:
    assert is_trusted(peer, PROXIES) is trusted
    assert not is_trusted(peer, ())


def test_a_unix_socket_is_trusted_where_that_is_said() -> None:
    assert not is_trusted("unix", parse_trusted_proxies("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("forwarded_for", "source"),
    [
        (None, PROXY),
        (CALLER, CALLER),
        (f"{FORGED}, {CALLER}", CALLER),
        (f"{FORGED}, {CALLER}, {OTHER_PROXY}", CALLER),
        (f" {CALLER} ,{OTHER_PROXY}", CALLER),
        (f"{CALLER}:4711", CALLER),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:DB8::1]:4711", "2001:db8::1"),
        ("::ffff:198.51.100.4", CALLER),
        (f"{CALLER}, nonsense", PROXY),
        (f"{CALLER}, nonsense, {OTHER_PROXY}", OTHER_PROXY),
        (f"{CALLER}, ", PROXY),
        ("", PROXY),
        (f"{OTHER_PROXY}", OTHER_PROXY),
        (f"{CALLER}, {'10.0.0.1, ' * 100}10.0.0.2", "10.0.0.1"),
    ],
)
def test_x_forwarded_for(forwarded_for: str | None, source: str) -> None:
    assert find_source(PROXY, forwarded_for, None, PROXIES) == source
    assert find_source("11.0.0.1", forwarded_for, None, PROXIES) == "11.0.0.1"


@pytest.mark.parametrize(
    ("forwarded", "source"),
    [
        (f"for={CALLER}", CALLER),
        (f"For={CALLER};proto=https;by=10.0.0.1", CALLER),
        (f'for="{CALLER}:4711"', CALLER),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        (f"for={FORGED}, for={CALLER}", CALLER),
        (f"for={FORGED};host=a, for={CALLER} , for={OTHER_PROXY}", CALLER),
        ("for=unknown", PROXY),
        ("for=_hidden", PROXY),
        (f"for={CALLER}, for=unknown", PROXY),
        (f"for={CALLER};for={FORGED}", PROXY),
        (f"by={CALLER}", PROXY),
        (f'for="{CALLER}', PROXY),
        (f'host="a,for={FORGED}";for={CALLER}', CALLER),
        ("", PROXY),
    ],
)
def test_forwarded(forwarded: str, source: str) -> None:
    assert find_source(PROXY, None, forwarded, PROXIES) == source


def test_two_headers_that_disagree_are_not_believed() -> None:
    """A proxy that writes one of them passes the caller's other one on."""
    assert find_source(PROXY, CALLER, f"for={CALLER}", PROXIES) == CALLER
    assert find_source(PROXY, CALLER, f"for={FORGED}", PROXIES) == PROXY


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_stands_there_an_address_comes_out(forwarded_for: str, forwarded: str) -> None:
    found = find_source(PROXY, forwarded_for, forwarded, PROXIES)
    assert found.isascii()
    assert len(found) <= 45


@pytest.mark.parametrize("given_id", ["a" * 8, "A-Z_a.z-09" * 12, "f" * 128])
def test_a_request_id_that_may_stand_in_a_log_is_taken(given_id: str) -> None:
    assert parse_request_id(given_id) == given_id


@pytest.mark.parametrize("given_id", [None, "", "a" * 7, "a" * 129, "a b c d e f", "a\nbcdefgh", "größe-größe"])
def test_any_other_request_id_is_not(given_id: str | None) -> None:
    assert parse_request_id(given_id) is None


@pytest.mark.parametrize("value", ["10.0.0.1/8", "proxy.example.com", "10.0.0.0/33", "unix:/s", "10.0.0.0/8 fd00::/8"])
def test_what_is_no_network_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="must be comma-separated networks"):
        parse_trusted_proxies(value)


def test_nothing_is_nobody() -> None:
    assert parse_trusted_proxies("") == parse_trusted_proxies(" , ") == ()


@pytest.mark.parametrize("repeated", [",", ";", '",', "for=1.2.3.4,", '";";', "\\"])
def test_what_a_caller_writes_costs_no_more_than_its_length(repeated: str) -> None:
    """A million characters, where no header has ten thousand: a cost that grows as the square would take hours."""
    hostile = repeated * (1_000_000 // len(repeated))
    assert find_source(PROXY, hostile, hostile, PROXIES) in {PROXY, "1.2.3.4"}


def test_the_pattern_of_a_pair_does_not_go_back_and_forth() -> None:
    """What it is given is the whole header where that has no separators; this would not end if it did."""
    many = 1_000_000
    for hostile in ("a" * many, " " * many, 'a="' + "\\" * many, f"a={'b' * many}!", f'a="{"b" * many}"!'):
        assert find_source(PROXY, None, hostile, PROXIES) == PROXY
