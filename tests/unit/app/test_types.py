"""The shapes that rooms share: what they show of themselves holds no secret."""

import dataclasses

import pytest
from authlib.oauth2.rfc6749 import ClientMixin

from app.clients.secrets import NewSecret
from app.oauth.client_auth import METHODS
from app.tokens.issuer import AccessToken
from app.types import AccessTokenGrant, Authentication, Client, Credentials


def access_token(encoded: str, jti: str) -> AccessToken:
    token = AccessToken(access_token=encoded)
    token.jti = jti
    return token


CLIENT = Client("an-id", "A service", "client_secret", ("client_credentials",), ("read",), (), None)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        (Credentials("hidden", "hidden"), "Credentials(…)"),
        (access_token("hidden", "a-jti"), "AccessToken(jti='a-jti')"),
        (NewSecret("hidden", "s-1", None), "NewSecret(s-1)"),
    ],
)
def test_a_shape_with_a_secret_does_not_show_it(shape: object, shown: str) -> None:
    assert (repr(shape), str(shape), f"{shape}") == (shown, shown, shown)


def test_a_client_answers_what_authlib_asks() -> None:
    assert CLIENT.get_client_id() == "an-id"
    assert CLIENT.check_grant_type("client_credentials") is True
    assert CLIENT.check_grant_type("password") is False
    assert CLIENT.get_allowed_scope("admin read") == "read"
    assert (
        CLIENT.check_client_secret("") is CLIENT.check_response_type("code") is CLIENT.check_redirect_uri("") is False
    )
    assert CLIENT.get_default_redirect_uri() == ""


def test_a_client_has_every_method_of_authlibs() -> None:
    methods = [name for name in vars(ClientMixin) if not name.startswith("_")]
    assert [name for name in methods if name not in vars(Client)] == []


@pytest.mark.parametrize(
    ("registered", "accepted"),
    [
        ("client_secret", {"client_secret_basic", "client_secret_post"}),
        ("client_secret_post", {"client_secret_post"}),
        ("private_key_jwt", {"private_key_jwt"}),
    ],
)
def test_a_client_accepts_the_methods_that_it_has_registered(registered: str, accepted: set[str]) -> None:
    client = dataclasses.replace(CLIENT, token_endpoint_auth_method=registered)
    offered = {"client_secret", "none", *(method.name for method in METHODS)}
    assert {name for name in offered if client.check_endpoint_auth_method(name, "token")} == accepted


@pytest.mark.parametrize(
    "shape", [CLIENT, Authentication(CLIENT, "m"), Credentials("a", "b"), AccessTokenGrant((), (), 1)]
)
def test_shapes_are_frozen_and_take_no_more_members(shape: object) -> None:
    name = next(iter(dataclasses.fields(shape))).name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(shape, name, "other")
    # Authlib's mixin has no slots.
    assert hasattr(shape, "__dict__") is isinstance(shape, ClientMixin)
