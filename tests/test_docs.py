"""What the documents say is so: settings, reasons of refusals, and the README's own code."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.server import NewClient, RunningServer, free_port, running_server

from app.cli.timeline import draw_text
from app.config.settings import SETTING_NAMES
from app.config.values import DAY, YEAR
from app.keyring.model import Ring
from app.keyring.rotation_plan import Planner, Rules
from app.keyring.serialization import new_key

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text()


def _code(language: str) -> str:
    """The README's one block in ``language``."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def local_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose issuer is where it listens, as under `make run`."""
    port = str(free_port())
    folder = tmp_path_factory.mktemp("local")
    with running_server(folder, TOKENHOUSE_ISSUER=f"http://127.0.0.1:{port}", PORT=port) as server:
        yield server


def test_every_setting_is_in_the_table_and_nothing_else() -> None:
    table = (PROJECT / "docs" / "settings.md").read_text()
    assert re.findall(r"^\| `(TOKENHOUSE_\w+)`", table, re.MULTILINE) == [
        "TOKENHOUSE_CONFIG",
        *(name for name in SETTING_NAMES if name != "TOKENHOUSE_CONFIG"),
    ]


@pytest.mark.parametrize("document", ["audit-log.md", "tokens.md"])
def test_the_lists_of_reasons_are_those_of_the_code(document: str) -> None:
    written = runpy.run_path(str(PROJECT / "docs" / "write_tables.py"))
    text = (PROJECT / "docs" / document).read_text()
    assert written["updated"](document, text) == text, "run `make tables`"


def test_the_readmes_python_verifies_a_token(local_server: RunningServer) -> None:
    module: dict[str, object] = {}
    exec(_code("python").replace("http://localhost:8080", local_server.settings.issuer), module)  # noqa: S102
    client = local_server.create_client(scope=("read",))
    claims = module["verify"](local_server.get_token(client)["access_token"])  # type: ignore[operator]
    assert (claims["sub"], claims["scope"]) == (client.client_id, "read")


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_readmes_node_verifies_a_token(local_server: RunningServer, tmp_path: Path) -> None:
    client = local_server.create_client(scope=("read",))
    token = local_server.get_token(client)["access_token"]
    program = tmp_path / "verify.mjs"
    (tmp_path / "node_modules").symlink_to(PROJECT / "tests" / "clients" / "node" / "node_modules")
    code = _code("js").replace("http://localhost:8080", local_server.settings.issuer)
    program.write_text(f"{code}\nconsole.log(JSON.stringify(await verify({json.dumps(token)})))\n")
    done = subprocess.run(["node", str(program)], capture_output=True, check=True, timeout=30)
    claims = json.loads(done.stdout)
    assert (claims["sub"], claims["scope"]) == (client.client_id, "read")


def _code_of(document: str, language: str) -> str:
    (block,) = _codes_of(document, language)
    return block


def _codes_of(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (PROJECT / "docs" / document).read_text(), re.DOTALL)


def _keyed_client(server: RunningServer, folder: Path) -> tuple[str, Path]:
    """A client as the document makes one: its id, and the file of its private key."""
    file = folder / "billing.pem"
    words = ("Billing", "--auth-method", "private_key_jwt", "--generate-key", str(file), "--scope", "invoices:read")
    return server.flask_json("clients", "create", *words)["client_id"], file


def test_the_python_of_client_keys_gets_a_token(local_server: RunningServer, tmp_path: Path) -> None:
    client_id, file = _keyed_client(local_server, tmp_path)
    names: dict[str, Any] = {
        "CLIENT_ID": client_id,
        "PRIVATE_KEY_PEM": file.read_text(),
        "TOKEN_ENDPOINT": local_server.token_url,
        "ISSUER": local_server.url,
    }
    by_authlib, by_requests_oauth2client = _codes_of("client-keys.md", "python")
    exec(by_authlib, names)  # noqa: S102
    assert local_server.verify(names["token"]["access_token"])["sub"] == client_id
    # It takes no http URL otherwise.
    exec(by_requests_oauth2client.replace("auth=", "testing=True, auth=", 1), names)  # noqa: S102
    assert local_server.verify(names["token"].access_token)["sub"] == client_id


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_node_of_client_keys_gets_a_token(local_server: RunningServer, tmp_path: Path) -> None:
    client_id, file = _keyed_client(local_server, tmp_path)
    # The document's server has TLS.
    code = _code_of("client-keys.md", "js").replace(
        "client.PrivateKeyJwt(key))", "client.PrivateKeyJwt(key), { execute: [client.allowInsecureRequests] })"
    )
    given = (
        f"const issuer = {json.dumps(local_server.settings.issuer)}, clientId = {json.dumps(client_id)}\n"
        f"const pkcs8 = Buffer.from({json.dumps(''.join(file.read_text().splitlines()[1:-1]))}, 'base64')\n"
    )
    program = tmp_path / "client.mjs"
    (tmp_path / "node_modules").symlink_to(PROJECT / "tests" / "clients" / "node" / "node_modules")
    program.write_text(f"{given}{code}\nconsole.log(token.access_token)\n")
    done = subprocess.run(["node", str(program)], capture_output=True, check=True, timeout=30, text=True)
    assert local_server.verify(done.stdout.strip())["sub"] == client_id


def test_every_test_that_the_standards_name_exists() -> None:
    text = (PROJECT / "docs" / "security" / "standards.md").read_text()
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 30
    for path, name in named:
        source = (PROJECT / "tests" / path).read_text()
        assert not name or re.search(rf"^def {name}\(", source, re.MULTILINE), (path, name)


def test_migrations_only_add_so_that_going_back_to_the_release_before_needs_none() -> None:
    may_add = {"create_table", "add_column", "create_index", "batch_alter_table", "f", "execute"}
    # The release before does without an index.
    may_add.add("drop_index")
    for path in sorted((PROJECT / "migrations" / "versions").glob("*.py")):
        (upgrade,) = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "upgrade"]
        calls = [node.func for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
        done = {call.attr for call in calls if isinstance(call, ast.Attribute) and ast.unparse(call.value) != "sa"}
        assert done <= may_add, path.name
        # Rows may be filled in, and nothing of them taken away.
        calls_of_execute = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
        statements = [call.args[0] for call in calls_of_execute if ast.unparse(call.func) == "op.execute"]
        assert all(str(ast.literal_eval(statement)).startswith("UPDATE ") for statement in statements)


def test_the_jobs_that_rotate_a_secret_run(local_server: RunningServer, tmp_path: Path) -> None:
    rotate, finish = re.findall(r"```sh\n(.*?)```", (PROJECT / "docs" / "secrets.md").read_text(), re.DOTALL)
    client = local_server.create_client(client_id="billing")
    assert local_server.get_token(client)
    deployed = tmp_path / "deployed"
    environment = local_server.environment | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DEPLOYED": str(deployed),
        "TMPDIR": str(tmp_path),
    }

    def run(script: str) -> subprocess.CompletedProcess[str]:
        script = f'deploy_secret() {{ test "$1" = billing && cp "$2" "$DEPLOYED"; }}\n{script}'
        return subprocess.run(
            ["sh", "-c", script], env=environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60
        )

    assert run(rotate).returncode == 0
    assert local_server.get_token(NewClient("billing", deployed.read_text().strip()))
    assert list(tmp_path.iterdir()) == [deployed]
    done = run(finish)
    assert (done.returncode, done.stdout) == (0, "")
    assert "may still use" in done.stderr
    assert local_server.get_token(client)


def test_the_timeline_in_the_document_is_what_rotate_prints() -> None:
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    rules = Rules(7 * DAY, 90 * DAY, 300, 2, 0)
    fresh = iter([(kid, new_key("RS256", 2048)[1]) for kid in ("first", "second", "third")])
    ring = Planner(rules, noon, fresh).generate(Ring(()), "RS256")
    later = noon + timedelta(days=90)
    ring = Planner(rules, later - timedelta(days=30), fresh).rotate(ring, later - timedelta(days=20))
    (drawn,) = re.findall(r"```text\n(.*?)```", (PROJECT / "docs" / "keys.md").read_text(), re.DOTALL)
    start = later - timedelta(days=30)
    assert drawn == f"{draw_text(ring, start, start + timedelta(seconds=YEAR))}\n"


def _messages_in_code() -> list[str]:
    """Every string of the key ring's rooms, with what is filled in as ``…``."""
    found = []
    for path in (PROJECT / "app" / "keyring").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant):
                found.append(str(node.value))
    return found


def test_the_refusals_in_the_document_are_what_the_code_says() -> None:
    part = (PROJECT / "docs" / "keys.md").read_text().partition("## What a refusal means")[2].partition("\n## ")[0]
    says = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    explained = [message for cell in says for message in re.findall(r"`([^`]+)`", cell)]
    assert len(explained) == 10
    messages = _messages_in_code()
    for message in explained:
        pattern = ".*".join(re.escape(piece) for piece in message.split("…"))
        assert any(re.search(pattern, said) for said in messages), message
