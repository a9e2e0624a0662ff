"""Whether a recipe is what its git repository has of it, and at which commit.

The repository may be a stranger's: nothing its configuration names is run. So its files are compared
here, by the names git gives to contents, and git only tells what the commit has.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

SECONDS = 5.0  # more than git ever takes for this
# Neither programs that watch files, nor hooks, nor fetching what a partial clone lacks.
_GIT = ("git", "--no-pager", "--no-optional-locks", "--no-replace-objects", "--literal-pathspecs")
_HARMLESS = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "protocol.allow=never")


def committed(path: Path) -> tuple[str, bool] | None:
    """The commit that is checked out where a file lies, and whether the file differs from the one there.

    Returns:
        None if the file is in no repository, there is no commit yet, or no git.
    """
    path = Path(os.path.realpath(path))  # of a link the file that is read
    folder = path.parent
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return None
    listed = _git(folder, "ls-tree", "HEAD", "--", path.name)
    if not listed:
        return commit, True
    name = listed.split()[2]
    try:
        content = path.read_bytes()
    except OSError:
        return commit, True
    kind = hashlib.sha1 if len(name) == 40 else hashlib.sha256
    return commit, kind(b"blob %d\0" % len(content) + content).hexdigest() != name


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, without the line's end; None if it fails or is not there."""
    options = [word for setting in _HARMLESS for word in ("-c", setting)]
    try:
        said = subprocess.run(
            [*_GIT, *options, "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.decode(errors="replace").strip()
