"""Pickles that run code or eat a machine elsewhere, and do nothing here.

Every payload that can be run without harm is run by Python's own pickle first: it must succeed there,
else it would prove nothing.
"""

from __future__ import annotations

import copyreg
import pickle
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from runner.disk.files import look
from runner.errors import InputError
from runner.formats import restricted_pickle
from runner.formats.pickle_stream import Stream
from runner.formats.pickled import read_pickled
from runner.formats.restricted_pickle import load
from runner.formats.torch_names import NAMES
from tests.formats.torch_files import old, state, tensor, text, zipped

SYSTEM = b"cposix\nsystem\n"
EXTENSION = 0xC0DE


def wrapped(payload: bytes) -> bytes:
    """A payload as one entry of an honest state dict."""
    return b"\x80\x04}(" + text("w") + tensor() + text("epoch") + payload + b"u."


# From a shell command to the opcodes that run it.
PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "reduce": lambda command: SYSTEM + text(command) + b"\x85R",
    "inst": lambda command: b"(" + text(command) + b"iposix\nsystem\n",
    "obj": lambda command: b"(" + SYSTEM + text(command) + b"o",
    "stack_global": lambda command: text("posix") + text("system") + b"\x93" + text(command) + b"\x85R",
    "dotted": lambda command: text("os") + text("path.os.system") + b"\x93" + text(command) + b"\x85R",
    "newobj": lambda command: (
        b"cbuiltins\nlist\ncbuiltins\nmap\n(" + SYSTEM + b"]" + text(command) + b"at\x81\x85R"
    ),
    "newobj_ex": lambda command: (
        b"cbuiltins\nlist\ncbuiltins\nmap\n(" + SYSTEM + b"]" + text(command) + b"at}\x92\x85R"
    ),
    "build": lambda command: (
        b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + SYSTEM + b"sb" + text(command) + b"b"
    ),
    "extension 1": lambda command: b"\x82\xde" + text(command) + b"\x85R",
    "extension 2": lambda command: b"\x83\xde\xc0" + text(command) + b"\x85R",
    "extension 4": lambda command: b"\x84\xde\xc0\x00\x00" + text(command) + b"\x85R",
    "eval": lambda command: (
        b"cbuiltins\neval\n" + text(f"__import__('os').system({command!r})") + b"\x85R"
    ),
    "exec": lambda command: b"cbuiltins\nexec\n" + text(f"import os; os.system({command!r})") + b"\x85R",
    "getattr": lambda command: (
        b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("os") + b"\x85R" + text("system") + b"\x86R"
        + text(command) + b"\x85R"
    ),
    "subprocess": lambda command: b"csubprocess\ngetoutput\n" + text(command) + b"\x85R",
    "torch": lambda command: (
        b"ctorch._utils\n_import_dotted_name\n" + text("os.system") + b"\x85R" + text(command) + b"\x85R"
    ),
    "numpy": lambda command: (
        b"cnumpy.testing._private.utils\nrunstring\n" + text(f"import os; os.system({command!r})") + b"}\x86R"
    ),
    "set of it": lambda command: b"(" + SYSTEM + text(command) + b"\x85R\x91",
    "in a persistent id": lambda command: (
        b"(" + text("storage") + SYSTEM + text(command) + b"\x85R0ctorch\nFloatStorage\n"
        + text("0") + text("cpu") + b"K\x04tQ"
    ),
    "dropped": lambda command: b"N" + SYSTEM + text(command) + b"\x85R0",
    "in the memo": lambda command: SYSTEM + b"\x940Nh\x00" + text(command) + b"\x85R0",
}  # fmt: skip


@pytest.fixture(autouse=True)
def extensions() -> Iterator[None]:
    """posix.system under two numbers of copyreg's registry, as a library may have put it there."""
    import os

    module = os.system.__module__
    copyreg.add_extension(module, "system", EXTENSION)
    copyreg._inverted_registry[0xDE] = (module, "system")  # type: ignore[attr-defined]
    yield
    copyreg.remove_extension(module, "system", EXTENSION)
    del copyreg._inverted_registry[0xDE]  # type: ignore[attr-defined]


class Victim(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Python's machine, as torch uses it without weights_only."""

    def persistent_load(self, pid: object) -> object:
        return torch.UntypedStorage(16)


def run(payload: bytes, path: Path) -> None:
    path.write_bytes(payload)
    with path.open("rb") as file:
        Victim(file).load()


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_runs_in_pythons_pickle(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    run(b"\x80\x04" + PAYLOADS[name](f"touch {canary}") + b".", tmp_path / "x.pkl")
    assert canary.exists()


@pytest.mark.parametrize("form", [zipped, old])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_refused_in_words_and_does_nothing(
    tmp_path: Path, name: str, form: Callable[..., bytes]
) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "x.ckpt"
    path.write_bytes(form(wrapped(PAYLOADS[name](f"touch {canary}")), {"0": bytes(16)}))
    with pytest.raises(InputError) as caught:
        read_pickled(look(path, "x.ckpt"))
    assert not canary.exists()
    (line, *_) = caught.value.lines()
    assert line.startswith(
        ("runner: error[E-UNSAFE]: x.ckpt: refers to", "runner: error[E-PICKLE]: x.ckpt: ")
    )
    assert len(line) <= 500


@pytest.mark.parametrize("place", range(5))
def test_no_pickle_of_the_old_form_runs_anything(tmp_path: Path, place: int) -> None:
    canary = tmp_path / "canary"
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [state(w=tensor()), pickle.dumps(["0"], 2)]
    parts[place] = b"\x80\x02" + PAYLOADS["reduce"](f"touch {canary}") + b"."
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"".join(parts) + (4).to_bytes(8, "little") + bytes(16))
    with pytest.raises(InputError, match=r"posix\.system"):
        read_pickled(look(path, "x.ckpt"))
    assert not canary.exists()


def test_the_refusal_names_what_would_run(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(zipped(wrapped(PAYLOADS["reduce"]("true")), {"0": bytes(16)}))
    with pytest.raises(InputError) as caught:
        read_pickled(look(path, "x.ckpt"))
    assert caught.value.lines()[0] == (
        'runner: error[E-UNSAFE]: x.ckpt: refers to "posix.system": refused; '
        "no checkpoint needs it, and other tools would run its code"
    )


def test_a_name_that_is_escaped_in_a_message(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(zipped(b"\x80\x02c\x1b[2J\n\xe2\x80\xae\n)R."))
    with pytest.raises(InputError) as caught:
        read_pickled(look(path, "x.ckpt"))
    assert all(line.isprintable() for line in caught.value.lines())


def doubled(first: bytes, double: bytes, times: int) -> bytes:
    """first, then a pair of what was made before, and so on: 2**times of them to whoever walks it."""
    return first + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + double for n in range(times))


DOUBLED = doubled(b"K\x01", b"\x86", 90)
LISTS = doubled(b"]", b"\x86", 90)
# A prime minus one apart, so that Python gives all of them one hash.
COLLIDING = b"".join(
    b"\x8a\x0b" + (n * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for n in range(1, 100_000)
)
OPCODES, STACK, ELSE = "more than", "from the stack", "expected a state dict"
BOMBS = {
    "brackets": (b"]" * (4 << 20), OPCODES),
    "tuples": (b")" + b"\x85" * 3_000_000, OPCODES),
    "marks": (b"(" * 200_000, "nested more than 100 deep"),
    "nested lists": (b"]" * 450_000 + b"a" * 449_999, ELSE),
    "nested tuples": (b")" + b"\x85" * 900_000, ELSE),
    "memo": (b"]r\xff\xff\xff\x7f", "memo index"),
    "memo read": (b"j\xff\xff\xff\x7f", "memo index"),
    "copies": (b"]" + b"2" * 1_000_000, "opcode DUP"),
    "pairs of pairs": (DOUBLED, ELSE),
    "as a name": (b"}" + DOUBLED + b"Ns", "no state dict"),
    "as names": (b"}(" + DOUBLED + b"Nu", "no state dict"),
    "in a set": (b"(" + DOUBLED + b"\x91", ELSE),
    "colliding names": (b"}(" + COLLIDING + b"u", "no state dict"),
    "as a shape": (state(x=tensor(strides=(1, 1)).replace(b"K\x04\x85", LISTS))[2:-1], "natural numbers"),
    "as a storage": (LISTS + b"Q", "persistent id"),
    "as a module": (LISTS + text("x") + b"\x93", "no text"),
    "as a name to call": (LISTS + b")R", "no function"),
    "as arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n" + LISTS + b"R", "number of arguments"),
    "a long integer": (b"\x8b\xff\xff\xff\x7f", "opcode LONG4"),
    "a long text": (b"X\xff\xff\xff\xff", "a text of 4294967295 bytes"),
    "a longer text": (b"\x8d" + b"\xff" * 7 + b"\x7f", "a text of 9223372036854775807 bytes"),
    "long bytes": (b"\x8e" + b"\xff" * 8, "truncated"),
    "long bytearray": (b"\x96" + b"\xff" * 8, "truncated"),
    "a long frame": (b"\x95" + b"\xff" * 8 + b"N", ELSE),
    "a long name": (b"c" + b"x" * (1 << 20), "a name without end"),
    "many names": (b"ctorch\nSize\n" * 300_000, "left on the stack"),
    "wide text": (b"X\x00\x00\x10\x00" + b"\xf0\x9f\x98\x80" * (1 << 18), ELSE),
    "no text": (b"X\x01\x00\x00\x00\xff", "not UTF-8"),
    "empty stack": (b"R", STACK),
    "no mark": (b"t", STACK),
    "a list in itself": (b"]q\x00h\x00a", ELSE),
    "a dict in itself": (b"}q\x00" + text("x") + b"h\x00s", "no state dict"),
}


@pytest.mark.parametrize("form", [zipped, old])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(tmp_path: Path, name: str, form: Callable[..., bytes]) -> None:
    path = tmp_path / "x.ckpt"
    payload, reason = BOMBS[name]
    path.write_bytes(form(b"\x80\x04" + payload + b".", {} if form is old else {"0": bytes(16)}))
    started = time.process_time()
    with pytest.raises(InputError, match=reason) as caught:
        read_pickled(look(path, "x.ckpt"))
    assert time.process_time() - started < 10
    assert all(len(line) <= 500 for line in caught.value.lines())


@pytest.mark.parametrize("opcodes", [b"]", b"}", b")\x85", b"(]t", b"K\x01\x85", b"]\x94", b"G" + bytes(8)])
def test_memory_follows_the_number_of_opcodes(monkeypatch: pytest.MonkeyPatch, opcodes: bytes) -> None:
    limit = 50_000
    monkeypatch.setattr(restricted_pickle, "MAX_OPCODES", limit)
    content = b"\x80\x02" + opcodes * limit
    stream = Stream(lambda at, count: content[at : at + count], len(content), "x")
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 50000 opcodes"):
        load(stream, NAMES, lambda value: value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128 * limit


def test_nothing_that_a_name_stands_for_is_of_another_module() -> None:
    """What a pickle can call are functions of ours that take a tuple and return a description."""
    for value in NAMES.values():
        function = getattr(value, "function", None)
        assert function is None or function.__module__ == "runner.formats.torch_names"


def test_a_pickle_without_end_is_refused() -> None:
    stream = Stream(lambda at, count: b"\x80\x02]"[at : at + count], 3, "x")
    with pytest.raises(InputError, match="truncated"):
        load(stream, {}, lambda value: value)
