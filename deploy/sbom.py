"""Write the SBOM of a server, a CycloneDX document: the releases of ``requirements.txt``, their licences and needs.

``make sbom`` runs it. The releases are installed into a new environment, since licences and needs are in their
metadata. The digests of what is installed are in ``requirements.txt``.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[1]
PYPROJECT = """[project]
name = "{name}"
version = "{version}"
description = "{summary}"
license = "{license}"
dependencies = {dependencies}
"""


def main(target: Path) -> None:
    """Write the document to ``target``, and check that it holds the lock's releases and nothing else."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = PROJECT / "requirements.txt"
    with tempfile.TemporaryDirectory() as folder:
        environment, pyproject = Path(folder, "environment"), Path(folder, "pyproject.toml")
        venv.create(environment)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", environment]
        subprocess.run([*pip, "install", "--require-hashes", "--requirement", lock], check=True)
        pyproject.write_text(_pyproject())
        cyclonedx = [Path(sys.executable).with_name("cyclonedx-py"), "environment", environment]
        options = ["--pyproject", pyproject, "--output-reproducible", "--output-file", target]
        subprocess.run([*cyclonedx, *options], check=True)
    components = json.loads(target.read_text())["components"]
    found = {f"{canonicalize_name(each['name'])}=={each['version']}" for each in components}
    locked = set(re.sub(r"\[[a-z,]+\]", "", lock.read_text()).split())
    if not found or found - locked:
        sys.exit(f"{target}: not in {lock.name}: {', '.join(sorted(found - locked)) or 'nothing was found'}")
    print(f"{target}: {len(found)} packages")


def _pyproject() -> str:
    metadata = distribution("tokenhouse").metadata
    needs = [need for need in distribution("tokenhouse").requires or [] if "extra ==" not in need]
    return PYPROJECT.format(
        name=metadata["Name"],
        version=metadata["Version"],
        summary=metadata["Summary"],
        license=metadata["License-Expression"] or metadata["License"],
        dependencies=json.dumps(needs),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
