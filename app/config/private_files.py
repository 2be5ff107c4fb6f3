"""Who may read and write the files that hold secrets or decide which keys sign: one rule for all of them.

Such a file belongs to root or to the user that runs this process, nobody else writes it, and nobody beyond its group
reads it. Containers mount secrets that everybody may read, and of any owner: on a read-only mount that is allowed.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Exposure(NamedTuple):
    """What is wrong with the owner or the mode of a file.

    :ivar fault: as the end of a sentence about the file.
    :ivar fix: a command.
    :ivar is_changeable: whether somebody else can change the file.
    """

    fault: str
    fix: str
    is_changeable: bool


def find_exposure(path: Path) -> Exposure | None:
    """Return what is wrong with a file; ``None`` if nothing is, or if it is no regular file.

    :raises OSError: it cannot be examined.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return None
    mode = stat.S_IMODE(found.st_mode)
    if mode & _WRITTEN_BY_OTHERS:
        return Exposure(f"may be changed by others (mode {mode:04o})", f"chmod go-w {path}", is_changeable=True)
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return None
    if found.st_uid not in {0, os.geteuid()}:
        return Exposure(f"belongs to another user (number {found.st_uid})", f"chown root {path}", is_changeable=True)
    if mode & stat.S_IRWXO:
        return Exposure(f"may be read by others (mode {mode:04o})", f"chmod o= {path}", is_changeable=False)
    return None


def find_changeable(path: Path) -> str | None:
    """Return a sentence about a file that somebody else can change; ``None`` if nobody can.

    :raises OSError: it cannot be examined.
    """
    exposure = find_exposure(path)
    return f"{path} {exposure.fault}: `{exposure.fix}`" if exposure and exposure.is_changeable else None
