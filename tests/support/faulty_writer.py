"""Change a key ring, with the settings of the environment, in a process that meets a fault.

``die-at``: for each number N of a line of standard input a process of its own, which is killed at its N-th step on
disk; prints its exit status. ``tiny-disk``: no file may grow. ``not-allowed``: the folder is another's.

Prints ``done`` or ``refused: …``.
"""

import os
import resource
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from app import create_app
from app.config.loader import load_settings
from app.errors import ManagementError
from app.services import Services

STEPS = {"open", "os.rename", "os.remove", "fsync"}
SOME_USER = 65534


def die_at(step: int, folder: str) -> None:
    """Kill this process at its ``step``-th touch of a file in ``folder``."""
    steps = count(1)

    def note(what: str, arguments: tuple[Any, ...]) -> None:
        ours = what == "fsync" or (arguments and folder in str(arguments[0]))
        if what in STEPS and ours and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        note("fsync", ())
        fsync(descriptor)

    os.fsync = noted_fsync  # type: ignore[assignment]
    sys.addaudithook(note)


def die_as_told(services: Services, folder: str) -> None:
    """Begin anew for each step that is asked for: nothing is loaded twice."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            die_at(int(line), folder)
            services.keys.manager.generate()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def be_somebody_else(folder: Path) -> None:
    """Keep the files and lose the folder."""
    if os.geteuid() == 0:
        for path in folder.iterdir():
            os.chown(path, SOME_USER, SOME_USER)
        os.seteuid(SOME_USER)
    else:
        folder.chmod(0o500)


def main() -> None:
    """Add a key."""
    (fault,) = sys.argv[1:]
    app = create_app(load_settings(dict(os.environ)))
    services: Services = app.extensions["tokenhouse"]
    folder = Path(os.environ["TOKENHOUSE_KEYRING"]).parent
    if fault == "die-at":
        die_as_told(services, str(folder))
        return
    if fault == "tiny-disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    else:
        be_somebody_else(folder)
    try:
        services.keys.manager.generate()
    except ManagementError as error:
        print(f"refused: {error}")
    else:
        print("done")


if __name__ == "__main__":
    main()
