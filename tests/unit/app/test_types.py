"""The shapes that rooms share: what they show of themselves holds no secret."""

import dataclasses

import pytest

from app.clients.secrets import NewSecret
from app.types import AccessToken, AccessTokenGrant, Authentication, Client, Credentials

CLIENT = Client("an-id", "A service", "client_secret", ("client_credentials",), ("read",), (), None)


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        (Credentials("hidden", "hidden"), "Credentials(…)"),
        (AccessToken("hidden", "a-jti", "hidden", AccessTokenGrant((), (), 1)), "AccessToken(jti='a-jti')"),
        (NewSecret("hidden", "s-1", None), "NewSecret(s-1)"),
    ],
)
def test_a_shape_with_a_secret_does_not_show_it(shape: object, shown: str) -> None:
    assert (repr(shape), str(shape), f"{shape}") == (shown, shown, shown)


def test_a_client_answers_what_authlib_asks() -> None:
    assert CLIENT.get_client_id() == "an-id"
    assert CLIENT.check_grant_type("client_credentials") is True
    assert CLIENT.check_grant_type("password") is False


@pytest.mark.parametrize(
    "shape", [CLIENT, Authentication(CLIENT, "m"), Credentials("a", "b"), AccessTokenGrant((), (), 1)]
)
def test_shapes_are_frozen_and_take_no_more_members(shape: object) -> None:
    name = next(iter(dataclasses.fields(shape))).name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(shape, name, "other")
    assert not hasattr(shape, "__dict__")
