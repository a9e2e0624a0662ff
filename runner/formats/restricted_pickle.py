"""A machine for pickles that knows data and a list of names, and can do nothing else.

Python's own machine imports what a pickle names and calls it. This one looks each name up in a table of
ours; what stands there is a function of ours or a mark without meaning. Only opcodes that a pickler
writes for data are known. Nothing recurses, no value is hashed but texts, and an opcode makes at most one
object, of its own bytes or of what it takes off the stack: time and memory follow the size of the pickle.

Source: the description of the opcodes in the standard library (pickletools.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from runner.errors import quote
from runner.formats.pickle_stream import PickleError, Stream, UnsafeError, decoded

MAX_OPCODES = 1_000_000  # a tensor takes about 40
MAX_MARKS = 100  # open at a time: how deep containers nest
MAX_TEXT_BYTES = 1 << 20
PROTOCOLS = range(2, 6)

Names: TypeAlias = Mapping[tuple[str, str], object]


class Inert:
    """What stood in a pickle and means nothing to us: numbers of an optimizer, a callback, bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "INERT"


INERT: Final = Inert()


@dataclass(frozen=True, slots=True)
class Call:
    """A name that a pickle may call, and what we do then: a function of ours on its arguments."""

    name: str
    function: Callable[[tuple[object, ...]], object]


def load(stream: Stream, names: Names, persistent: Callable[[object], object]) -> object:
    """The value a pickle describes: texts, numbers, lists, tuples, dicts by text, and what names give.

    Args:
        stream: stands behind the pickle afterwards.
        names: (module, name) → what it stands for; all others are refused.
        persistent: what a persistent id stands for.

    Raises:
        InputError: not a pickle of that kind.
    """
    machine = _Machine(stream, names, persistent)
    try:
        return machine.run()
    except PickleError as problem:
        raise stream.error(problem) from None
    except IndexError:
        raise stream.error(PickleError("takes more from the stack than was put on it")) from None


class _Machine:
    def __init__(self, stream: Stream, names: Names, persistent: Callable[[object], object]) -> None:
        self.stream, self.names, self.persistent = stream, names, persistent
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # the stacks below each mark
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        stream, actions = self.stream, _ACTIONS
        for _ in range(MAX_OPCODES):
            opcode = stream.byte()
            if opcode == _STOP:
                if self.below or len(self.stack) != 1:
                    raise PickleError("ends with something left on the stack")
                return self.stack[0]
            action = actions.get(opcode)
            if action is None:
                raise PickleError(f"opcode {_opcode_name(opcode)}, which no checkpoint needs")
            action(self)
        raise PickleError(f"more than {MAX_OPCODES} opcodes")

    # Stack and memo

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.below) >= MAX_MARKS:
            raise PickleError(f"nested more than {MAX_MARKS} deep")
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[object]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, index: int) -> None:
        if index >= MAX_OPCODES:
            raise PickleError(f"memo index {index} (below {MAX_OPCODES} are read)")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"memo index {index} was never set")
        self.push(self.memo[index])

    # Plain values

    def protocol(self) -> None:
        if (number := self.stream.byte()) not in PROTOCOLS:
            raise PickleError(f"protocol {number} ({PROTOCOLS[0]} to {PROTOCOLS[-1]} are read)")

    def text(self, length: int) -> None:
        if length > MAX_TEXT_BYTES:
            raise PickleError(f"a text of {length} bytes (at most {MAX_TEXT_BYTES} are read)")
        self.push(decoded(self.stream.take(length)))

    def data(self, length: int) -> None:
        self.stream.take(length)
        self.push(INERT)

    def integer(self, length: int) -> None:
        self.push(int.from_bytes(self.stream.take(length), "little", signed=True))

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    # Containers. A set is inert, and so is what a call gave that means nothing to us.

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif target is not INERT:
            raise PickleError("appends to what is no list")

    def append_one(self) -> None:
        self.append([self.stack.pop()])

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if target is INERT:
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("sets items of what is no dict, or not in pairs")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                continue  # a state dict has texts; numbers can be made to collide
            if key in target:
                raise PickleError(f"the name {quote(key)} stands twice in one dict")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def add_items(self) -> None:
        self.pop_mark()
        if self.stack[-1] is not INERT:
            raise PickleError("adds to what is no set")

    def frozen_set(self) -> None:
        self.pop_mark()
        self.push(INERT)

    # Names and calls

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        if (module, name) not in self.names:
            raise UnsafeError(
                f"refers to {quote(f'{module}.{name}')}: refused; "
                "no checkpoint needs it, and other tools would run its code"
            )
        self.push(self.names[module, name])

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Call) or not isinstance(arguments, tuple):
            raise PickleError("calls what is no function")
        self.push(function.function(arguments))

    def new_with_keywords(self) -> None:
        self.stack.pop()
        self.call()

    def build(self) -> None:
        """The attributes of a dict (_metadata) mean nothing to us, and an inert object has none."""
        self.stack.pop()
        if self.stack[-1] is not INERT and not isinstance(self.stack[-1], dict):
            raise PickleError("sets attributes of what is no object")

    def persistent_id(self) -> None:
        self.push(self.persistent(self.stack.pop()))


def _opcode_name(opcode: int) -> str:
    from pickletools import opcodes  # only for the message

    return next((known.name for known in opcodes if known.code == chr(opcode)), f"0x{opcode:02x}")


def _frame(machine: _Machine) -> None:
    machine.stream.number(8)  # only says how many bytes to read ahead


def _float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.stream.take(8))[0])


_Action: TypeAlias = Callable[[_Machine], object]
_STOP = ord(".")
_ACTIONS: dict[int, _Action] = {
    0x80: _Machine.protocol,
    0x95: _frame,
    ord("("): _Machine.mark,
    # memo
    ord("q"): lambda m: m.put(m.stream.byte()),
    ord("r"): lambda m: m.put(m.stream.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): lambda m: m.get(m.stream.byte()),
    ord("j"): lambda m: m.get(m.stream.number(4)),
    # plain values
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.stream.byte()),
    ord("M"): lambda m: m.push(m.stream.number(2)),
    ord("J"): lambda m: m.integer(4),
    0x8A: lambda m: m.integer(m.stream.byte()),
    ord("G"): _float,
    ord("X"): lambda m: m.text(m.stream.number(4)),
    0x8C: lambda m: m.text(m.stream.byte()),
    0x8D: lambda m: m.text(m.stream.number(8)),
    ord("B"): lambda m: m.data(m.stream.number(4)),
    ord("C"): lambda m: m.data(m.stream.byte()),
    0x8E: lambda m: m.data(m.stream.number(8)),
    0x96: lambda m: m.data(m.stream.number(8)),
    # containers
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord("]"): lambda m: m.push([]),
    ord("a"): _Machine.append_one,
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    0x8F: lambda m: m.push(INERT),
    0x90: _Machine.add_items,
    0x91: _Machine.frozen_set,
    # names and calls
    ord("c"): lambda m: m.name(m.stream.line(), m.stream.line()),
    0x93: _Machine.stack_name,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    0x92: _Machine.new_with_keywords,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent_id,
}
