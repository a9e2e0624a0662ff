"""Where InvokeAI keeps models, and its names for them: read from its database, not a byte written beside it.

Source: InvokeAI, services/config/config_default.py (models_dir and db_dir, from the root on) and
services/shared/sqlite_migrator/migrations (table models since version 4).
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

from runner.errors import InputError, escape
from runner.library.programs import read_settings

SETTINGS, _DATABASE = "invokeai.yaml", "invokeai.db"
MAX_MODELS = 100_000
MAX_STEPS = 5_000_000  # of SQLite's machine; a table that is a program of its own is given up


def is_invokeai(root: Path) -> bool:
    """Whether a folder is InvokeAI's root."""
    return (root / SETTINGS).is_file() or (root / "databases" / _DATABASE).is_file()


def invokeai_places(root: Path) -> tuple[Path, Path]:
    """The database, and the folder of models, as the settings in InvokeAI's root say.

    Raises:
        InputError: they cannot be read.
    """
    path = root / SETTINGS
    stated = read_settings(path, "settings by name") if path.exists() else {}
    databases, models = stated.get("db_dir"), stated.get("models_dir")
    return (
        root / (databases if isinstance(databases, str) else "databases") / _DATABASE,
        root / (models if isinstance(models, str) else "models"),
    )


def invokeai_names(database: Path, models: Path) -> dict[Path, str]:
    """Real path of each model the database knows → its name.

    Args:
        database: invokeai.db.
        models: where relative paths start.

    Raises:
        InputError: it is no database of InvokeAI's.
    """
    label = escape(str(database))
    # A running InvokeAI writes ahead into a second file, and leaves it there when it is killed. SQLite finds
    # its way in it by an index, which it would mend on disk if it did not take it for read-only. Without the
    # two the first file is read as it is, locks and all left alone.
    ahead, index = (database.with_name(f"{database.name}{end}") for end in ("-wal", "-shm"))
    both = ahead.exists() and index.exists()
    if not both and ahead.exists() and ahead.stat().st_size:
        raise InputError(
            f"{label}: its newest part, {escape(ahead.name)}, cannot be read without {escape(index.name)}; "
            "starting InvokeAI makes it anew"
        )
    mode = "readonly_shm=1" if both else "immutable=1"
    address = f"file:{url_quote(str(database.absolute()))}?mode=ro&{mode}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=2)) as connection:
            connection.set_progress_handler(lambda: 1, MAX_STEPS)
            rows = connection.execute("SELECT config FROM models LIMIT ?", (MAX_MODELS,)).fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{label}: no database of models of InvokeAI's: {escape(str(error))}") from error
    found: dict[Path, str] = {}
    for (config,) in rows:
        if (entry := _entry(config)) is not None:
            path, name = entry
            try:
                found[(models / path).resolve()] = name
            except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL
                continue
    return dict(sorted(found.items()))


def _entry(config: Any) -> tuple[str, str] | None:
    """Path and name of one model; None of a row without."""
    try:
        tree = json.loads(config)
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(tree, dict):
        return None
    path, name = tree.get("path"), tree.get("name")
    if tree.get("base") == "external":  # a service elsewhere
        return None
    if not isinstance(path, str) or not isinstance(name, str) or not path or not name:
        return None
    return path, name
