"""python -m runner.library PROCESSES CACHE FOLDER ...: reads headers and remembers them, and says nothing.

For programs that something else has to go on in meanwhile: a thread that reads would hold it up.
"""

from __future__ import annotations

import sys
from pathlib import Path

from runner.library.lookup import Library

if __name__ == "__main__":
    library = Library(tuple(map(Path, sys.argv[3:])), Path(sys.argv[2]))
    library.entries(library.found, processes=int(sys.argv[1]))
