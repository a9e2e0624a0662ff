"""Calls of the system fail, by strace: the reader and the writer with nothing of ours in between."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.disk.files import look
from runner.formats.safetensors import read_header
from tests.build import write_models

NAME = "x.safetensors"
SIDECAR = f"{NAME}.tensors.json"
OLD = b"what was there before"
# A copy of a model through reader and writer, in a process of its own that is quick to start: no torch.
COPY = """
import hashlib, sys
from pathlib import Path
from runner.errors import RunnerError
from runner.disk.files import look, read_into
from runner.formats.safetensors import SafetensorsFile, output_file
from runner.checkpoint import Layout
from runner.write import Staging
try:
    model = SafetensorsFile().open(Path("a.safetensors"), "a", None)
    file = output_file("", model.specs, {})
    layout = Layout("x.safetensors", folder=False, files=(file,))
    source = model.files[0].open()
    written, content = [], hashlib.sha256()
    with Staging(layout, Path("out", layout.name), checked=False) as staging:
        for key, (offset, spec) in file.tensors.items():
            data = memoryview(bytearray(spec.nbytes))
            read_into(source, data, model.tensors[key].offset, "a")
            written.append(staging.write(0, data, offset))
            content.update(data)
        model.files[0].check_unchanged(source)
        staging.stamp([content.hexdigest()])
        staging.sync()
        staging.read_back(written, 1)
        staging.publish(b"digests")
except RunnerError as error:
    print(error)
    sys.exit(error.exit_code)
"""
# What fails, and the exit code: calls that are interrupted are made again.
FAULTS = [
    ("pwrite64:error=ENOSPC:when=1", 7),
    ("pwrite64:error=EDQUOT:when=3+", 7),
    ("pwrite64:error=EINTR:when=1+2", 0),
    ("fsync:error=EIO:when=2", 7),  # of the folder, when the model has its name
    ("fsync:error=EIO:when=1", 7),
    ("fsync:error=EINTR:when=1..3", 0),
    ("fallocate:error=ENOSPC:when=1", 7),
    ("?rename,?renameat,renameat2:error=EXDEV:when=1+", 7),
    ("flock:error=ENOLCK:when=1", 7),
    ("preadv,preadv2:error=EIO:when=2", 7),
    ("preadv,preadv2:error=EINTR:when=1+2", 0),
    ("?chmod,fchmodat,?fchmodat2:error=EPERM:when=1", 7),
    ("?rename,?renameat,renameat2:error=EROFS:when=1", 7),
    ("openat:error=EMFILE:when=1", 7),
    ("openat:error=EACCES:when=2", 7),
    ("openat:error=ENOSPC:when=2", 7),
]


@pytest.fixture(scope="module")
def strace() -> str:
    """The program, if it is there and may trace."""
    path = shutil.which("strace")
    if path is None or subprocess.run([path, "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("SKIPPED: no strace, or no ptrace: failing system calls are not tested")
    return path


@pytest.mark.parametrize(("fault", "code"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_a_failing_system_call_tears_nothing(fault: str, code: int, strace: str, tmp_path: Path) -> None:
    write_models(tmp_path, a=1)
    out = tmp_path / "out"
    out.mkdir()
    (out / NAME).write_bytes(OLD)
    partial = f".rnr-{hashlib.sha256(NAME.encode()).hexdigest()[:8]}.part"
    # Calls on these alone: those of the interpreter are let through.
    paths = [
        tmp_path / "a.safetensors",
        out,
        out / NAME,
        out / partial,
        *(Path("out", n) for n in (NAME, partial)),
    ]
    command = [strace, "-f", "-qq", "-o", "trace", *(part for path in paths for part in ("-P", str(path)))]
    command += ["-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", COPY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "INJECTED" in (tmp_path / "trace").read_text()
    assert done.returncode == code, (done.stdout, done.stderr)
    whole = done.returncode == 0
    assert sorted(path.name for path in out.iterdir()) == [NAME, SIDECAR][: 1 + whole]
    replaced = (out / NAME).read_bytes() != OLD
    assert replaced == (whole or "is in place" in done.stdout)
    if replaced:
        read_header(look(out / NAME, NAME))
