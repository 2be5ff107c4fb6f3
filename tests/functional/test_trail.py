"""What commands change leaves a trace in the audit log: who, what, which fields; never a secret."""

import getpass
import time
from typing import Any

from support.server import RunningServer, running_server, wait_until

PATIENCE_SECONDS = 20
CHANGED = ["scope", "access_token_lifetime", "description"]


def changes(server: RunningServer) -> list[dict[str, Any]]:
    return [event for event in server.events() if event["event"] in {"ClientChanged", "KeyRingChanged"}]


def test_each_change_is_told_once_by_one_of_all_workers(tmp_path_factory: Any, database_url: str) -> None:
    me = getpass.getuser()
    folder = tmp_path_factory.mktemp("trail")
    with running_server(folder, "--workers", "2", TOKENHOUSE_DATABASE_URL=database_url) as server:
        made = server.flask_json("clients", "create", "A service", "--client-id", "c", "--scope", "read")
        for command in (
            ("clients", "update", "c", "--scope", "read write", "--description", "changed", "--lifetime", "1h"),
            ("clients", "update", "c", "--scope", "read write"),
            ("clients", "disable", "c"),
            ("clients", "disable", "c"),
            ("clients", "enable", "c"),
        ):
            assert server.flask(*command).returncode == 0
        second = server.flask_json("clients", "rotate-secret", "c")
        assert server.flask("clients", "revoke-secret", "c", second["secret_id"]).returncode == 0
        assert server.flask("clients", "delete", "c", "--yes").returncode == 0
        generated = server.flask_json("keys", "generate")
        assert server.flask("clients", "show", "nobody").returncode == 1
        wait_until(lambda: len(changes(server)) >= 8)
        time.sleep(2)
        told = changes(server)
    assert all(event.pop("time") and event.pop("by") == me and event.pop("outcome") == "changed" for event in told)
    assert {event.pop("server") for event in told} == {server.settings.server_name}
    first_id = told[0].pop("secret_ids")
    assert len(first_id) == 1
    assert told == [
        {"event": "ClientChanged", "client_id": "c", "change": "created"},
        {
            "event": "ClientChanged",
            "client_id": "c",
            "change": "updated",
            "fields": ["scope", "access_token_lifetime", "description"],
        },
        {"event": "ClientChanged", "client_id": "c", "change": "disabled"},
        {"event": "ClientChanged", "client_id": "c", "change": "enabled"},
        {"event": "ClientChanged", "client_id": "c", "change": "secret_added", "secret_ids": [second["secret_id"]]},
        {"event": "ClientChanged", "client_id": "c", "change": "secret_revoked", "secret_ids": [second["secret_id"]]},
        {"event": "ClientChanged", "client_id": "c", "change": "deleted"},
        {"event": "KeyRingChanged", "change": "generated", "kids": [generated["kid"]]},
    ]
    assert made["client_secret"] not in server.stdout_path.read_text()
    assert second["client_secret"] not in server.stdout_path.read_text()


def test_what_was_changed_while_no_server_ran_is_told_by_the_next_one(tmp_path_factory: Any) -> None:
    server = RunningServer(tmp_path_factory.mktemp("later"))
    server.prepare()
    assert server.flask("clients", "create", "A service").returncode == 0
    server.start("--workers", "1")
    try:
        wait_until(lambda: len(changes(server)) == 1)
    finally:
        server.stop()
