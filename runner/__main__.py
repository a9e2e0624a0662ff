"""The command: python -m runner, or runner. Everything heavy is imported after the plan is made."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # Ctrl-C while the rest is imported: nothing is begun, nothing is to be said
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.checkpoint import RECORD
from runner.completion import shells
from runner.compose import DATA_ROOT, is_file, recipe_folders, recipe_names, recipe_of, register
from runner.config import RECIPE_JOBS, settings_of
from runner.errors import Interrupted, OutputError, RecipeError, RunnerError, UsageError, nearest, quote
from runner.interrupts import Interrupts, interruption_in, is_told, leave_to_the_system
from runner.publish.target import TARGETS
from runner.sweep import gather, write_status, write_tables
from runner.write import write_file

log = logging.getLogger("runner")
MAX_SLUG = 80  # characters of the name of a run's folder
_DEBUG = "HYDRA_FULL_ERROR"  # set by the user: tracebacks are shown


def main() -> NoReturn:
    """Runs the command line and leaves with its exit code."""
    try:
        code = run(sys.argv[1:])
    except (KeyboardInterrupt, Interrupted) as error:  # while another error was being told
        code = tell(error)
    leave_to_the_system()  # what is left to say may wait for who does not read it
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed: that does not spoil what is done
            stream.flush()
    if "joblib" in sys.modules:  # its exit handlers send its workers home
        sys.exit(code)
    os._exit(code)  # the interpreter would take half a second to free torch


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; returns the exit code. Errors are told on stderr, one line each."""
    debug = bool(os.environ.get(_DEBUG))
    os.environ[_DEBUG] = "1"  # Hydra then raises what it would print and turn into exit code 1
    Interrupts()
    OmegaConf.register_new_resolver("runner.slug", slug, replace=True)
    OmegaConf.register_new_resolver("runner.folder", folder_of, replace=True)
    OmegaConf.register_new_resolver("runner.sweep", sweep_folder, replace=True)
    OmegaConf.register_new_resolver("runner.id", lambda: secrets.token_hex(3), replace=True, use_cache=True)
    OmegaConf.register_new_resolver("runner.methods", methods_in_short, replace=True)
    register()
    shells.register()
    _warn_of_missing_folders()
    if "job=compose" in arguments:  # the recipe it opens need not be there yet, or be in a folder of ours
        arguments = [f"job.{one}" if one.startswith("recipe=") else one for one in arguments]
    sys.argv[1:] = arguments
    try:
        _hydra_main()
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # who read --help has seen enough
    except SystemExit as error:
        if debug and error.__context__:
            traceback.print_exception(error.__context__)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        if debug:
            traceback.print_exception(error)
        return tell(error)
    return 0


@hydra.main(config_path=str(DATA_ROOT / "conf"), config_name="config", version_base="1.3")
def _hydra_main(config: DictConfig) -> None:
    """One job: a run, or one of a sweep."""
    context = HydraConfig.get()
    folder = Path(context.runtime.output_dir)
    # Not resolved: what an override refers to is not for the record.
    overrides = list(map(str, OmegaConf.to_container(context.overrides.task, resolve=False) or ()))
    swept = context.mode == RunMode.MULTIRUN
    try:
        summary = _job(config, context.runtime.choices.get("recipe"), overrides, folder, swept)
        code, message, interrupted = 0, "", False
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        log.debug("failed", exc_info=error)
        code, message, summary = tell(error, folder / "run.log"), str(error), {}
        if not swept and code != 1 and _is_without_recipe(context):
            _leave_nothing(folder)
            sys.exit(code)
        _record_failure(folder, overrides, code, message)
        if not swept:
            sys.exit(code)
        interrupted = interruption_in(error) is not None
    if not swept and (_is_without_recipe(context) or summary.get("earlier")):
        _leave_nothing(folder)
    if swept:
        with suppress(OutputError):  # a job without a status counts as failed
            write_status(folder, overrides, code, message, summary)
            if interrupted:  # Hydra asks for the end of a sweep only if there are no more jobs
                write_tables(Path(context.sweep.dir), gather(Path(context.sweep.dir)))
        if interrupted:
            sys.exit(code)


def _job(
    config: DictConfig, choice: str | None, overrides: Sequence[str], folder: Path, swept: bool
) -> dict[str, Any]:
    settings = settings_of(config)
    if settings.job.name not in RECIPE_JOBS:
        from runner.jobs import run_job

        return run_job(settings, folder, overrides)
    if choice is None:
        raise UsageError("recipe=NAME is missing", hint="python -m runner --help lists the recipes")
    if settings.resume is not None and not swept:
        raise UsageError("resume: continues a sweep", hint="give -m and the command of the sweep")
    recipe = recipe_of(config, choice, overrides)

    from runner.run import run as run_recipe

    if not swept or settings.output_dir is None:
        return run_recipe(recipe, settings, folder).summary()
    # The models of a sweep must not replace each other.
    own = settings.output_dir / folder.name
    try:
        own.mkdir(exist_ok=settings.resume is not None)
    except FileExistsError as error:
        hint = "give another output_dir; the models of a sweep are never replaced"
        raise UsageError(f"output folder {quote(own)} is there already", hint=hint) from error
    except OSError as error:
        hint = f"make it: mkdir -p {settings.output_dir}"
        reason = f"output folder {quote(settings.output_dir)}: {error.strerror}"
        raise OutputError(reason, hint=hint if isinstance(error, FileNotFoundError) else None) from error
    try:
        return run_recipe(recipe, replace(settings, output_dir=own), folder).summary()
    finally:
        with suppress(OSError):
            own.rmdir()  # succeeds only if nothing was written there


def _is_without_recipe(context: HydraConf) -> bool:
    """Whether the job is one that answers on the spot: its folder would hold what was asked, and no more."""
    return context.runtime.choices.get("job") not in RECIPE_JOBS


def _leave_nothing(folder: Path) -> None:
    """Removes the folder of a run that has nothing to record, and those above it that are empty then."""
    if (folder / RECORD).exists():  # of the earlier run that this one repeats
        return
    written = [folder / ".hydra" / f"{name}.yaml" for name in ("config", "hydra", "overrides")]
    with suppress(OSError):
        for file in (*written, folder / "run.log"):
            file.unlink(missing_ok=True)
        (folder / ".hydra").rmdir()
        folder.rmdir()
        if (runs := folder.parents[1]).name == "runs":  # nobody chose another place
            folder.parent.rmdir()
            runs.rmdir()


def _record_failure(folder: Path, overrides: Sequence[str], code: int, message: str) -> None:
    """Leaves a run.json of a run that failed before it had one."""
    if (folder / RECORD).exists():
        return
    from runner.provenance.record import RunRecord

    record = RunRecord((), overrides)
    record.run["error"] = {"stage": "compose", "exit_code": code, "message": message}
    with suppress(OutputError):
        write_file(folder / RECORD, record.text().encode())


def tell(error: BaseException, logged: Path | None = None) -> int:
    """Says on stderr what went wrong; returns the exit code."""
    error = interruption_in(error) or error
    if isinstance(error, KeyboardInterrupt):
        error = Interrupted(signal.SIGINT)
    if isinstance(error, Interrupted):
        is_told()
        _print("runner: interrupted. Nothing unfinished is left behind.")
        return error.exit_code
    if not isinstance(error, RunnerError):
        error = _translated(error)
    for line in error.lines():
        _print(line)
    if error.exit_code == 1 and logged is not None:
        _print(f"log: {logged}")
    return error.exit_code


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


def _translated(error: BaseException) -> RunnerError:
    """Hydra's errors in our words; anything else is a bug of ours."""
    if isinstance(error, MissingConfigException):
        group, _, name = (error.missing_cfg_file or "").partition("/")
        if not name and group != "recipe":  # --config-name or --config-path
            return UsageError(str(error).partition("\n")[0])
        known = recipe_names() if group == "recipe" else error.options or []
        if group == "recipe":
            folders = ", ".join(map(str, recipe_folders()))
            hint = f"recipes are looked for in {folders}; RUNNER_RECIPES=FOLDER adds one"
            for path in (Path(name), Path(f"{name}.yaml"), Path(f"recipes/{name}.yaml")):
                if is_file(path):
                    hint = f"a path must be absolute: recipe={path.absolute()}"
            return RecipeError(f"no recipe {quote(name)}{nearest(name, known)}", hint=hint)
        suggestion = nearest(name, known) or f" (there are: {', '.join(known)})"
        return UsageError(f"{group}={name}: there is no such {group}{suggestion}")
    if isinstance(error, RecursionError):
        return RecipeError("a recipe's defaults lead back to itself")
    if isinstance(error, OSError):  # Hydra could not make the folder of the run
        what = f"{quote(error.filename)}: " if error.filename else ""
        return OutputError(f"{what}{error.strerror or error}")
    if isinstance(error, OverrideParseException):
        hint = "quote the value, and all for the shell: \"recipe.models.a='my model.safetensors'\""
        return UsageError(f"{quote(error.override)}: {error.message.splitlines()[0]}", hint=hint)
    if isinstance(error, ConfigCompositionException):
        found = re.search(r"Could not override '([^']+)'", str(error))
        if found:
            known = _setting_names()
            if found[1].startswith("publish.") and found[1] in known:
                hint = f"each target has its own settings: publish={', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
                return UsageError(f"{quote(found[1])}: no target is chosen that has this setting", hint=hint)
            if found[1] in known:
                hint = f"it belongs to another job: job={_job_of(found[1])}"
                return UsageError(f"{quote(found[1])}: this job has no such setting", hint=hint)
            suggestion = nearest(found[1], known) or " (python -m runner --help lists them)"
            return UsageError(f"{quote(found[1])}: unknown setting{suggestion}")
        cause = error.__cause__ or error.__context__  # Hydra names it in one place and not in the other
        if isinstance(cause, OmegaConfBaseException):
            key = str(cause.full_key or "recipe")
            reason = str(cause.msg).partition("\n")[0]
            return RecipeError(f"{key}: what is laid over each other does not fit: {reason}")
    if isinstance(error, OmegaConfBaseException):
        if "hydra.runtime.choices.recipe" in str(error):
            return UsageError("recipe=NAME: expected the name of one recipe")
        return UsageError(str(error).partition("\n")[0], hint="is a group (recipe, job, placement) missing?")
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return UsageError("recipe, job and placement each need a name", hint="recipe=NAME")
    if isinstance(error, HydraException):
        return UsageError(str(error).partition("\n")[0])
    first = str(error).partition("\n")[0]
    return RunnerError(f"{type(error).__name__}: {first}", hint="this is a bug in runner")


def _job_of(setting: str) -> str:
    """A job that has a setting."""
    name = setting.partition(".")[2]
    paths = sorted((DATA_ROOT / "conf" / "job").glob("*.yaml"))
    return next((path.stem for path in paths if name in OmegaConf.load(path)), "NAME")


def _setting_names() -> list[str]:
    conf = DATA_ROOT / "conf"
    names = [str(key) for key in OmegaConf.load(conf / "config.yaml") if key not in ("defaults", "hydra")]
    for path in sorted(conf.glob("*/*.yaml")):
        group = path.parent.name
        names += [group, *(f"{group}.{key!s}" for key in OmegaConf.load(path))]
    return [*names, "recipe"]


def _warn_of_missing_folders() -> None:
    for folder in recipe_folders()[:-1]:
        if not folder.is_dir():
            _print(f"runner: warning[W-RECIPES]: RUNNER_RECIPES: {quote(folder)}: no such folder")


def methods_in_short() -> str:
    """The methods and their parameters, for --help."""
    from runner.catalogue import in_short  # here: it knows all methods, and no run needs them all

    return in_short()


def folder_of(job: str, recipe: str) -> str:
    """The name of the folder for runs: the recipe's, or the job's if it has no recipe."""
    return slug(recipe) if job in RECIPE_JOBS else slug(job)


def sweep_folder(resume: str | None, new: str) -> str:
    """The folder of a sweep: of the one that is continued, or a new one."""
    return str(Path(str(resume)).expanduser()) if resume else new


def slug(text: str) -> str:
    """A text as the name of a folder: short, without separators."""
    text = text.removesuffix(".yaml").rpartition("/")[2] if "=" not in text else text
    name = re.sub(r"[^\w.=,+-]+", "-", text, flags=re.ASCII).strip("-.") or "run"
    if len(name) <= MAX_SLUG:
        return name
    # What is cut off still tells two texts apart.
    return f"{name[: MAX_SLUG - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


if __name__ == "__main__":
    main()
if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # imported only
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)
