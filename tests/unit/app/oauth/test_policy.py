"""Policy: what a client's token may say. Tables for the exact answers, hypothesis for what must always hold."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clients.scopes import parse_scope
from app.errors import InvalidScope, InvalidTarget
from app.oauth.policy import MOST_TARGETS, Policy, _form_of, grant
from app.types import AccessTokenGrant, Client, GrantedApi

POLICY = Policy(access_token_lifetime=3600, default_audience="https://tokens.example.com")
# RFC 6749 section 3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
SCOPE_CHARACTERS = "".join(map(chr, [0x21, *range(0x23, 0x5C), *range(0x5D, 0x7F)]))
# RFC 6749 section 5.2: error_description = %x20-21 / %x23-5B / %x5D-7E
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]*")

tokens = st.text(SCOPE_CHARACTERS, min_size=1, max_size=300)
few_tokens = st.lists(st.sampled_from(["read", "write", "a:b", "https://x.example/s", "~", "!"]), unique=True)
resources = st.sampled_from(["https://a.example", "https://b.example", "urn:c", "urn:d"])


def client(
    *, scope: tuple[str, ...] = (), audiences: tuple[str, ...] = (), access_token_lifetime: int | None = None
) -> Client:
    return Client("c", "C", "client_secret", ("client_credentials",), scope, audiences, access_token_lifetime)


def decide_scope(granted: tuple[str, ...], asked: str | None) -> tuple[str, ...]:
    return grant(client(scope=granted), scope=asked, resources=[], policy=POLICY).scope


@pytest.mark.parametrize(
    ("granted", "asked", "given_scope"),
    [
        (("read", "write"), None, ("read", "write")),
        (("write", "read"), None, ("write", "read")),
        ((), None, ()),
        (("read", "write"), "write", ("write",)),
        (("read", "write"), "write read", ("write", "read")),
        (("read", "write"), "read read", ("read",)),
        (("read", "write"), "write read write read", ("write", "read")),
    ],
)
def test_a_scope_is_given_as_it_was_asked_for(
    granted: tuple[str, ...], asked: str | None, given_scope: tuple[str, ...]
) -> None:
    assert decide_scope(granted, asked) == given_scope


@pytest.mark.parametrize(
    ("granted", "asked", "told"),
    [
        (("read",), "write", "The client was not granted: write"),
        (("read",), "read write", "The client was not granted: write"),
        ((), "read", "The client was not granted: read"),
        (("read",), "READ", "The client was not granted: READ"),
        (("read",), "rea", "The client was not granted: rea"),
        (("a b",), "a", "The client was not granted: a"),
        (("read",), "c b c a", "The client was not granted: c b a"),
        (
            ("read",),
            " ".join(f"s{n}" for n in range(11)),
            "The client was not granted: s0 s1 s2 s3 s4 s5 s6 s7 s8 s9 ...",
        ),
        (("read",), " ".join(f"s{n}" for n in range(10)), "The client was not granted: s0 s1 s2 s3 s4 s5 s6 s7 s8 s9"),
        (("read",), "x" * 101, f"The client was not granted: {'x' * 100}..."),
        (("read",), "x" * 100, f"The client was not granted: {'x' * 100}"),
    ],
)
def test_more_than_was_granted_is_refused_and_named(granted: tuple[str, ...], asked: str, told: str) -> None:
    with pytest.raises(InvalidScope) as caught:
        decide_scope(granted, asked)
    assert (caught.value.description, caught.value.reason, caught.value.client_id) == (told, "scope_not_granted", "c")


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        " ",
        " read",
        "read ",
        "read  write",
        "read\twrite",
        "read\nwrite",
        "read\n",
        'a"b',
        "a\\b",
        "a\x00b",
        "é",
        "a\x7f",
        "a\xa0b",
    ],
)
def test_a_scope_that_breaks_the_grammar_is_refused_and_never_quoted(malformed: str) -> None:
    with pytest.raises(InvalidScope) as caught:
        decide_scope(("read", "write"), malformed)
    assert caught.value.description == "The scope must be scope tokens separated by single spaces."
    assert caught.value.reason == "malformed_scope"


@given(st.text())
def test_a_scope_parses_exactly_when_it_keeps_to_the_grammar(text: str) -> None:
    well_formed = all(part and set(part) <= set(SCOPE_CHARACTERS) for part in text.split(" "))
    try:
        parsed = parse_scope(text)
    except InvalidScope:
        assert not well_formed
    else:
        assert well_formed
        assert parsed == tuple(dict.fromkeys(text.split(" ")))


@given(few_tokens, few_tokens)
def test_a_token_says_a_subset_of_what_was_granted_in_the_order_asked_each_once(
    granted: list[str], asked: list[str]
) -> None:
    repeated = asked + asked[::-1]
    try:
        given_scope = decide_scope(tuple(granted), " ".join(repeated) or None)
    except InvalidScope:
        assert not set(asked) <= set(granted)
    else:
        assert set(asked) <= set(granted)
        assert given_scope == tuple(asked or granted)


@given(st.lists(tokens, min_size=1, max_size=200))
def test_a_refusal_is_small_and_in_the_characters_of_an_error_description(asked: list[str]) -> None:
    with pytest.raises(InvalidScope) as caught:
        decide_scope((), " ".join(asked))
    assert DESCRIPTION.fullmatch(caught.value.description)
    assert len(caught.value.description) <= 1200


@pytest.mark.parametrize(
    ("audiences", "asked", "given_audiences"),
    [
        ((), [], ("https://tokens.example.com",)),
        (("urn:a", "urn:b"), [], ("urn:a",)),
        (("urn:a", "urn:b"), ["urn:b"], ("urn:b",)),
        (("urn:a", "urn:b"), ["urn:b", "urn:a"], ("urn:b", "urn:a")),
        (("urn:a", "urn:b"), ["urn:b", "urn:b"], ("urn:b",)),
    ],
)
def test_an_audience_is_what_was_asked_for_or_the_first_or_the_servers(
    audiences: tuple[str, ...], asked: list[str], given_audiences: tuple[str, ...]
) -> None:
    assert grant(client(audiences=audiences), scope=None, resources=asked, policy=POLICY).audiences == given_audiences


@pytest.mark.parametrize(
    ("resources", "audiences", "given_audiences"),
    [
        # The registered spelling is issued, since verifiers compare aud byte by byte.
        (["https://API.example.com:443"], [], ("https://api.example.com/",)),
        (["https://api.example.com", "https://api.example.com/"], [], ("https://api.example.com/",)),
        ([], ["orders"], ("orders",)),
        (["urn:a"], ["orders", "urn:a"], ("urn:a", "orders")),
        ([], ["https://api.example.com"], ("https://api.example.com/",)),
    ],
)
def test_equivalent_uris_and_the_parameter_audience_name_an_api_too(
    resources: list[str], audiences: list[str], given_audiences: tuple[str, ...]
) -> None:
    asking = client(audiences=("urn:a", "https://api.example.com/", "orders"))
    decided = grant(asking, scope=None, resources=resources, audiences=audiences, policy=POLICY)
    assert decided.audiences == given_audiences


def test_of_two_audiences_that_are_equivalent_the_one_that_was_written_is_meant() -> None:
    asking = client(audiences=("https://api.example.com/", "https://api.example.com"))
    for written in asking.audiences:
        assert grant(asking, scope=None, resources=[written], policy=POLICY).audiences == (written,)


ORDERS = GrantedApi("orders", "https://orders.example.com", ("read", "write"), 600, {"plan": "gold", "tenant": "o"})
BILLS = GrantedApi("bills", "bills", ("read", "pay"), None)
ISSUER = POLICY.default_audience


def of_apis(**fields: Any) -> Client:
    return replace(client(), apis=(ORDERS, BILLS), **fields)


def decide(asking: Client, *targets: str, scope: str | None = None) -> AccessTokenGrant:
    return grant(asking, scope=scope, resources=[], audiences=targets, policy=POLICY)


@pytest.mark.parametrize(
    ("fields", "targets", "audiences", "scope"),
    [
        ({}, [], [ORDERS.identifier], "read write"),
        ({}, ["bills"], ["bills"], "read pay"),
        ({}, ["bills", ORDERS.identifier], ["bills", ORDERS.identifier], "read write pay"),
        # A client with registered scopes or audiences keeps its default audience when it is granted an API.
        ({"scope": ("own",)}, [], [ISSUER], "own"),
        ({"scope": ("own",), "audiences": ("urn:a",)}, [], ["urn:a"], "own"),
        ({"audiences": ("urn:a",)}, [], ["urn:a"], ""),
        ({"scope": ("own",)}, ["bills"], ["bills"], "read pay"),
        ({"scope": ("own",), "audiences": ("urn:a",)}, ["bills"], ["bills"], "read pay"),
        ({"scope": ("own",), "audiences": ("urn:a",)}, ["urn:a", "bills"], ["urn:a", "bills"], "own read pay"),
        # An audience that is an API too: the client's own scopes, and those of the grant.
        ({"scope": ("own",), "audiences": ("bills",)}, ["bills"], ["bills"], "own read pay"),
        ({"scope": ("own",), "audiences": ("bills",)}, [], ["bills"], "own read pay"),
    ],
)
def test_a_token_has_the_scopes_of_its_apis_alone(
    fields: dict[str, Any], targets: list[str], audiences: list[str], scope: str
) -> None:
    decided = decide(of_apis(**fields), *targets)
    assert (list(decided.audiences), " ".join(decided.scope)) == (audiences, scope)
    for token in scope.split():
        assert decide(of_apis(**fields), *targets, scope=token).scope == (token,)


@pytest.mark.parametrize(
    ("targets", "asked", "told", "reason"),
    [
        (["bills"], "write", "The client was not granted for this API: write", "scope_of_other_api"),
        (["bills"], "own", "The client was not granted for this API: own", "scope_of_other_api"),
        ([ORDERS.identifier], "read pay", "The client was not granted for this API: pay", "scope_of_other_api"),
        (["bills"], "write other", "The client was not granted: write other", "scope_not_granted"),
        (["urn:a"], "read", "The client was not granted for this API: read", "scope_of_other_api"),
        ([], "pay", "The client was not granted for this API: pay", "scope_of_other_api"),
    ],
)
def test_a_scope_of_another_api_is_refused(targets: list[str], asked: str, told: str, reason: str) -> None:
    with pytest.raises(InvalidScope) as caught:
        decide(of_apis(scope=("own",), audiences=("urn:a",)), *targets, scope=asked)
    assert (caught.value.description, caught.value.reason, caught.value.client_id) == (told, reason, "c")


@pytest.mark.parametrize(
    ("own", "targets", "lifetime"),
    [
        (None, [ORDERS.identifier], 600),
        (None, ["bills"], 3600),
        (None, ["bills", ORDERS.identifier], 600),
        (60, [ORDERS.identifier], 60),
        (7200, [ORDERS.identifier], 600),
        (7200, ["bills"], 7200),
    ],
)
def test_the_shortest_lifetime_that_is_set_counts(own: int | None, targets: list[str], lifetime: int) -> None:
    assert decide(of_apis(access_token_lifetime=own), *targets).lifetime_seconds == lifetime


def test_a_lifetime_of_an_api_may_be_longer_than_the_servers() -> None:
    asking = replace(client(), apis=(replace(BILLS, access_token_lifetime=7200),))
    assert decide(asking).lifetime_seconds == 7200


@pytest.mark.parametrize(
    ("of_orders", "of_bills", "own", "signed"),
    [
        ("ES256", "ES256", [], "ES256"),
        ("ES256", None, [], None),
        ("ES256", "EdDSA", [], None),
        ("RS256", None, [], "default"),
        ("RS256", None, ["urn:a"], "default"),
        ("ES256", "ES256", ["urn:a"], None),
        (None, None, ["urn:a"], "default"),
    ],
)
def test_one_algorithm_signs_a_token(
    of_orders: str | None, of_bills: str | None, own: list[str], signed: str | None
) -> None:
    apis = (replace(ORDERS, signing_alg=of_orders), replace(BILLS, signing_alg=of_bills))
    asking = replace(client(audiences=("urn:a",)), apis=apis)
    targets = [ORDERS.identifier, "bills", *own]
    if signed:
        assert (decide(asking, *targets).signing_alg or "default") == signed
        return
    with pytest.raises(InvalidTarget) as caught:
        decide(asking, *targets)
    assert caught.value.description == "The resources need different signing algorithms: request one token for each."
    assert (caught.value.error, caught.value.reason) == ("invalid_target", "algorithms_differ")


def test_claims_are_those_of_the_client_and_the_apis_of_the_token() -> None:
    asking = of_apis(claims={"tenant": "c", "team": "t"})
    assert decide(asking, "bills").claims == {"tenant": "c", "team": "t"}
    assert decide(asking, ORDERS.identifier).claims == {"tenant": "o", "team": "t", "plan": "gold"}
    assert decide(asking, ORDERS.identifier).apis == ("orders",)
    assert decide(asking, ORDERS.identifier, "bills").apis == ("orders", "bills")


def test_two_apis_that_give_a_claim_different_values_get_no_token_together() -> None:
    other = replace(BILLS, claims={"plan": "silver"})
    asking = replace(client(), apis=(ORDERS, other))
    with pytest.raises(InvalidTarget) as caught:
        decide(asking, ORDERS.identifier, "bills")
    assert caught.value.description == "The resources differ in their claims: request one token for each."
    assert (caught.value.error, caught.value.reason) == ("invalid_target", "claims_differ")
    assert decide(replace(client(), apis=(ORDERS, replace(BILLS, claims={"plan": "gold"}))), ORDERS.identifier, "bills")


@given(st.data())
def test_a_token_never_has_a_scope_of_an_api_that_it_is_not_for(data: st.DataObject) -> None:
    tokens_of = st.lists(st.sampled_from("abcdef"), unique=True).map(tuple)
    names = data.draw(st.lists(st.sampled_from(["urn:x", "urn:y", "urn:z"]), unique=True))
    apis = tuple(GrantedApi(name, name, data.draw(tokens_of)) for name in names)
    audiences = data.draw(st.lists(st.sampled_from(["urn:x", "urn:o"]), unique=True).map(tuple))
    asking = replace(client(scope=data.draw(tokens_of), audiences=audiences), apis=apis)
    targets = data.draw(st.lists(st.sampled_from([*names, *audiences, "urn:no"]), max_size=3))
    asked = data.draw(st.none() | st.lists(st.sampled_from("abcdef"), min_size=1).map(" ".join))
    try:
        decided = decide(asking, *targets, scope=asked)
    except (InvalidScope, InvalidTarget):
        return
    allowed: set[str] = set()
    for audience in decided.audiences:
        allowed.update(token for api in apis if api.identifier == audience for token in api.scope)
        if audience in audiences or audience == ISSUER:
            allowed.update(asking.scope)
    assert set(decided.scope) <= allowed
    assert asked is not None or set(decided.scope) == allowed
    assert set(decided.audiences) <= {*names, *audiences, ISSUER}


def test_what_callers_request_fills_no_cache() -> None:
    asking = client(audiences=("https://a.example", "https://b.example"))
    assert decide(asking, "HTTPS://A.example").audiences == ("https://a.example",)
    kept = _form_of.cache_info().currsize
    for number in range(20):
        with pytest.raises(InvalidTarget):
            decide(asking, f"https://{number}.example/{'x' * 1000}")
    assert _form_of.cache_info().currsize == kept


def test_a_request_names_a_hundred_resources_at_most() -> None:
    names = [f"n{number}" for number in range(MOST_TARGETS + 1)]
    asking = client(audiences=tuple(names))
    assert decide(asking, *names[:-1]).audiences == tuple(names[:-1])
    with pytest.raises(InvalidTarget) as caught:
        decide(asking, *names)
    assert caught.value.description == "A request may name at most 100 resources."
    assert (caught.value.error, caught.value.reason) == ("invalid_target", "too_many_resources")
    with pytest.raises(InvalidTarget):
        grant(asking, scope=None, resources=["urn:a"] * 60, audiences=names[:41], policy=POLICY)


@pytest.mark.parametrize("asked", ["two words", "", "é", "https://api.example.com/#part", "*"])
def test_an_audience_that_breaks_its_grammar_is_refused_and_never_quoted(asked: str) -> None:
    with pytest.raises(InvalidTarget) as caught:
        grant(client(audiences=("urn:a",)), scope=None, resources=[], audiences=[asked], policy=POLICY)
    assert caught.value.description == "An audience must be a URI or the name of an API."
    assert (caught.value.error, caught.value.reason) == ("invalid_target", "malformed_audience")


def test_the_parameter_audience_can_be_ignored() -> None:
    policy = replace(POLICY, reads_audience=False)
    for asked in (["urn:b"], ["two words"]):
        decided = grant(client(audiences=("urn:a",)), scope=None, resources=[], audiences=asked, policy=policy)
        assert decided.audiences == ("urn:a",)


@pytest.mark.parametrize("asked", ["junk #", "", "\x00é", "a b", "relative", "https://api.example.com/#part"])
def test_a_resource_that_breaks_its_grammar_is_refused_and_never_quoted(asked: str) -> None:
    with pytest.raises(InvalidTarget) as caught:
        grant(client(audiences=("urn:a",)), scope=None, resources=[asked], policy=POLICY)
    assert caught.value.description == "A resource must be an absolute URI without a fragment."
    assert (caught.value.error, caught.value.reason) == ("invalid_target", "malformed_resource")


@pytest.mark.parametrize("asked", ["https://tokens.example.com", "urn:other", "urn:A", "urn:a/"])
def test_a_resource_that_was_not_granted_is_refused_and_named(asked: str) -> None:
    for audiences in ((), ("urn:a",)):
        with pytest.raises(InvalidTarget) as caught:
            grant(client(audiences=audiences), scope=None, resources=[asked], policy=POLICY)
        refused = caught.value
        assert refused.description == f"The client was not granted: {asked}"
        assert (refused.error, refused.reason, refused.client_id) == ("invalid_target", "resource_not_granted", "c")


@given(st.lists(resources, unique=True), st.lists(resources))
def test_a_token_is_for_granted_resources_only(audiences: list[str], asked: list[str]) -> None:
    try:
        given_audiences = grant(
            client(audiences=tuple(audiences)), scope=None, resources=asked, policy=POLICY
        ).audiences
    except InvalidTarget:
        assert not set(asked) <= set(audiences)
    else:
        expected = tuple(dict.fromkeys(asked)) or tuple(audiences[:1]) or (POLICY.default_audience,)
        assert given_audiences == expected


@pytest.mark.parametrize(("own", "lifetime"), [(None, 3600), (1, 1), (86400, 86400)])
def test_a_lifetime_is_the_clients_own_or_the_servers(own: int | None, lifetime: int) -> None:
    decided = grant(client(access_token_lifetime=own), scope=None, resources=[], policy=POLICY)
    assert decided == AccessTokenGrant((), ("https://tokens.example.com",), lifetime)


def test_the_scope_is_settled_before_the_resources() -> None:
    with pytest.raises(InvalidScope):
        grant(client(), scope="x", resources=["urn:x"], policy=POLICY)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("read imported-secret other", "read (withheld: it looks like a secret) other"),
        ("ximported-secretx", "(withheld: it looks like a secret)"),
        (f"{'x' * 95}imported-secret", "(withheld: it looks like a secret)"),
        ("imported", "(withheld: it looks like a secret)"),
        ("secret", "secret"),
        (f"ths_{'a' * 16}", "(withheld: it looks like a secret)"),
        (f"urn:ths_{'-' * 16}", "(withheld: it looks like a secret)"),
        ("ths_x.example", "ths_x.example"),
    ],
)
def test_what_may_be_a_secret_is_not_named(asked: str, told: str) -> None:
    with pytest.raises(InvalidScope) as caught:
        grant(client(scope=()), scope=asked, resources=[], policy=POLICY, never_named=["imported-secret"])
    assert caught.value.description == f"The client was not granted: {told}"
    resources = [f"urn:{word}" for word in asked.split()]
    with pytest.raises(InvalidTarget) as target:
        grant(client(), scope=None, resources=resources, policy=POLICY, never_named=["imported-secret"])
    assert "imported-secret" not in target.value.description
