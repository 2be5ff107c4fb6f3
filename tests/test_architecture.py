"""The house: imports form one stack, registries hold imports and one tuple, files and functions stay small.

Each line of ``STACK`` may import from the lines above it only; rooms of one line do not know each other.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
APP = PROJECT / "app"

STACK = (
    {"proxies", "randomness", "pausing", "jws"},
    {"settings", "contracts", "postgresql"},
    {"errors", "models", "settings_layers", "otel_variables"},
    {
        "events",
        "lines",
        "policy",
        "encryption",
        "fetching",
        "database",
        "worker",
        "web",
        "forms",
    },
    {"logs", "keyring", "gate", "outbox", "background", "questions", "measures"},
    {"clients", "stores"},
    {"client_auth", "sender_constraints", "issuer"},
    {"grants", "inspection"},
    {"server", "standing", "feed"},
    {"services"},
    {"health", "doctor"},
    {"metrics", "tracing"},
    {"endpoints", "cli", "serving"},
)
LEVELS = {room: level for level, rooms in enumerate(STACK) for room in rooms}

REGISTRIES = {"client_auth": "METHODS", "grants": "GRANTS", "endpoints": "ENDPOINTS", "cli": "COMMANDS"}
PURE_ROOMS = (
    "randomness",
    "pausing",
    "policy",
    "keyring/ring",
    "issuer",
    "inspection",
    "jws",
    "clients/jwks",
    "clients/digests",
    "clients/fields",
    "events",
)
"""Neither Flask nor the database; the clock is a parameter."""

# The development server, which is run as a program, and what gunicorn serves compose applications.
COMPOSERS = {"cli/development", "serving"}

SLOW_IMPORTS = {"__init__", "database", "logs", "serving", "settings", "doctor"}
"""They import a driver, a dialect and structlog when these are needed, so that commands are quick."""

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(APP.rglob("*.py")):
        yield str(path.relative_to(APP).with_suffix("")), path


MODULES = dict(_modules())


def _imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every imported module by its dotted name, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names if node.module == "app")


def _rooms_imported_by(path: Path) -> set[str]:
    names = {name for name, _ in _imported(ast.parse(path.read_text()))}
    return {name.split(".")[1] for name in names if name.startswith("app.")} & (LEVELS.keys() | {"__init__"})


def test_every_room_has_its_place_in_the_stack() -> None:
    rooms = {name.split("/")[0] for name in MODULES} - {"__init__"}
    assert rooms <= LEVELS.keys(), f"no place for {sorted(rooms - LEVELS.keys())}"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_a_room_imports_only_from_above(name: str) -> None:
    room = name.split("/", maxsplit=1)[0]
    level = LEVELS[room]
    wrong = {other for other in _rooms_imported_by(MODULES[name]) if other != room and LEVELS[other] >= level}
    assert not wrong, f"{name} imports {sorted(wrong)}, which stand beside or below it"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in {"__init__", *COMPOSERS}])
def test_nobody_imports_from_the_composition(name: str) -> None:
    names = {name for name, _ in _imported(ast.parse(MODULES[name].read_text()))}
    assert "app" not in names


@pytest.mark.parametrize(("room", "registry"), REGISTRIES.items())
def test_a_registry_holds_imports_and_one_tuple(room: str, registry: str) -> None:
    docstring, *rest = ast.parse((APP / room / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    *imports, assignment = rest
    assert all(isinstance(node, ast.ImportFrom) for node in imports)
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.Tuple)
    assert [ast.unparse(target) for target in assignment.targets] == [registry]


@pytest.mark.parametrize("name", PURE_ROOMS)
def test_a_pure_room_knows_neither_flask_nor_the_database(name: str) -> None:
    imported = {module.split(".")[0] for module, _ in _imported(ast.parse(MODULES[name].read_text()))}
    assert not imported & {"flask", "flask_sqlalchemy", "sqlalchemy", "werkzeug"}


def test_only_one_room_bends_authlibs_server() -> None:
    bending = [name for name, path in MODULES.items() if "AuthorizationServer" in path.read_text()]
    assert bending == ["server"]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("cli/") and name not in SLOW_IMPORTS])
def test_no_import_hides_in_a_function(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [node for function in functions for _, node in _imported(function)]


@pytest.mark.parametrize("name", MODULES)
def test_a_file_is_small_enough_to_feel_at_home_in(name: str) -> None:
    source = MODULES[name].read_text()
    assert len(source.splitlines()) <= FILE_LINES_MAX
    long = [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))
