"""The layout of ``app/``: imports form one stack, registries are short, files and functions stay small.

A *part* is a package or a module at the top of ``app/``. Each line of ``STACK`` may import from the lines above it
only; parts on one line do not import each other. Every name in this file must exist, so that no entry outlives its
module.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
APP = PROJECT / "app"
WORKER = PROJECT / "buffered_worker"

STACK = (
    {"audiences", "blocking", "shared_state", "types", "reasons"},
    {"errors"},
    {"config"},
    {"crypto", "http", "database"},
    {"audit"},
    {"keyring"},
    {"clients"},
    {"apis"},
    {"tokens"},
    {"oauth"},
    {"services"},
    {"observability"},
    {"operations"},
    {"cli"},
)
LEVELS = {part: level for level, parts in enumerate(STACK) for part in parts}

REGISTRIES = {
    "oauth/client_auth": "METHODS",
    "oauth/grants": "GRANTS",
    "oauth/endpoints": "ENDPOINTS",
    "oauth/sender_constraints": "SENDER_CONSTRAINTS",
    "keyring/backends": "BACKENDS",
    "cli": "COMMANDS",
}
PURE_MODULES = (
    "audiences",
    "blocking",
    "reasons/reason",
    "reasons/refusals",
    "reasons/tokens",
    "oauth/policy",
    "keyring/model",
    "keyring/rotation_plan",
    "keyring/validation",
    "tokens/issuer",
    "tokens/validation",
    "crypto/jws",
    "crypto/algorithms",
    "crypto/jwk",
    "crypto/key_set",
    "crypto/certificates",
    "crypto/fitness",
    "clients/secret_digests",
    "apis/fields",
    "clients/claims",
    "clients/fields",
    "clients/trust_rules",
    "clients/scopes",
    "audit/events",
)
"""They know neither Flask nor the database; the clock is a parameter."""

CUSTOMIZES_AUTHLIB = "oauth/authorization_server"
"""The one module that subclasses Authlib's ``AuthorizationServer``."""

LAZY_IMPORTS = (
    "database/build",
    "database/engine",
    "audit/log",
    "operations/gunicorn_hooks",
    "config/values",
    "operations/doctor",
)
"""They import a driver, a dialect or structlog in a function, so that commands start quickly."""

TOP_MODULES_MAX = 7
PARTS_MAX = 24
IMPORTS_BETWEEN_PARTS_MAX = 130
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(APP.rglob("*.py")):
        yield str(path.relative_to(APP).with_suffix("")), path


MODULES = dict(_modules())
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def _part_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0]


def _imported(tree: ast.AST) -> Iterator[str]:
    """Every imported module by its dotted name, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "app")


def _parts_imported_by(name: str) -> set[str]:
    dotted = {module.split(".")[1] for module in _imported(TREES[name]) if module.startswith("app.")}
    return (dotted & LEVELS.keys()) - {_part_of(name)}


def test_every_part_has_its_place_in_the_stack_and_every_entry_exists() -> None:
    parts = {_part_of(name) for name in MODULES} - {"__init__"}
    assert parts == LEVELS.keys()
    assert sum(map(len, STACK)) == len(LEVELS), "a part stands on two lines"
    assert {*PURE_MODULES, *LAZY_IMPORTS, CUSTOMIZES_AUTHLIB} <= MODULES.keys()


def test_the_top_of_the_layout_fits_on_a_screen() -> None:
    assert len([name for name in MODULES if "/" not in name]) <= TOP_MODULES_MAX
    assert len({_part_of(name) for name in MODULES}) <= PARTS_MAX
    imports = {(_part_of(name), part) for name in MODULES for part in _parts_imported_by(name)}
    assert len(imports) <= IMPORTS_BETWEEN_PARTS_MAX


@pytest.mark.parametrize("path", sorted(WORKER.glob("*.py")), ids=lambda path: path.stem)
def test_the_worker_package_depends_on_nothing_of_ours(path: Path) -> None:
    modules = set(_imported(ast.parse(path.read_text())))
    assert not {module for module in modules if module.split(".")[0] == "app"}
    assert len(path.read_text().splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_a_part_imports_only_from_lines_above_it(name: str) -> None:
    level = LEVELS[_part_of(name)]
    wrong = {part for part in _parts_imported_by(name) if LEVELS[part] >= level}
    assert not wrong, f"{name} imports {sorted(wrong)}, which stand beside or below it"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_nothing_imports_from_the_composition(name: str) -> None:
    assert "app" not in set(_imported(TREES[name]))


@pytest.mark.parametrize(("package", "registry"), REGISTRIES.items())
def test_a_registry_holds_imports_and_one_tuple(package: str, registry: str) -> None:
    docstring, *rest = ast.parse((APP / package / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    *imports, assignment = rest
    assert all(isinstance(node, ast.ImportFrom) for node in imports)
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.Tuple)
    assert [ast.unparse(target) for target in assignment.targets] == [registry]


@pytest.mark.parametrize("name", PURE_MODULES)
def test_a_pure_module_knows_neither_flask_nor_the_database(name: str) -> None:
    imported = {module.split(".")[0] for module in _imported(TREES[name])}
    assert not imported & {"flask", "flask_sqlalchemy", "sqlalchemy", "werkzeug"}


def test_only_one_module_customizes_authlibs_server() -> None:
    subclasses = [name for name, path in MODULES.items() if "rfc6749.AuthorizationServer" in path.read_text()]
    assert subclasses == [CUSTOMIZES_AUTHLIB]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("cli/") and name not in LAZY_IMPORTS])
def test_no_import_hides_in_a_function(name: str) -> None:
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [module for function in functions for module in _imported(function)]


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= FILE_LINES_MAX
    long = [
        node.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_responsible_for(name: str) -> None:
    assert ast.get_docstring(TREES[name])
