"""The client that the conformance tests of MCP start: it runs an agent of ``examples/mcp``.

``python mcp_scenario.py COMMAND… URL``: the environment variable ``MCP_CONFORMANCE_CONTEXT`` has the credentials.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

*command, url = sys.argv[1:]
context = json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])
parts = urlsplit(url)
# An operator configures the issuer; here only the scenario knows it.
with urlopen(f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource{parts.path}") as answer:  # noqa: S310
    issuer = json.load(answer)["authorization_servers"][0]
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "credentials"
    file.write_text(context.get("private_key_pem") or context["client_secret"])
    environment = {"CLIENT_ID": context["client_id"], "ISSUER": issuer}
    if "private_key_pem" in context:
        environment |= {"CLIENT_KEY_FILE": str(file), "CLIENT_KEY_ALG": context["signing_algorithm"]}
    else:
        environment["CLIENT_SECRET_FILE"] = str(file)
    sys.exit(subprocess.run([*command, url], env=os.environ | environment, check=False).returncode)
