"""What runs inside the two sandboxes of `sandbox.py`; a script that nothing imports, with the standard library alone.

The program under test and the tests are in different processes, in different sandboxes, that share a socket and nothing
else. The tests call the program's functions by messages; what comes back is rebuilt as plain data. So whatever the
program does to its own interpreter, all that reaches the tests is values, and these are compared by the tests' own
interpreter.
"""

from __future__ import annotations

import builtins
import itertools
import json
import operator
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

LONGEST_MESSAGE = 2**24  # bytes
LONGEST_ERROR = 300  # characters
OPEN_FILES = 32
FILE_BYTES = 2**24

_REBUILT: dict[str, Callable[[Any], object]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "bytes": bytes,
    "complex": lambda parts: complex(*parts),
}
# What tests may catch. StopIteration is not among them: it would end a loop over results before its last comparison.
_RAISED = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, (ArithmeticError, AssertionError, LookupError, NotImplementedError, TypeError, ValueError))
    and not issubclass(kind, UnicodeError)  # takes more than a message
}
_OPERATIONS: dict[str, Callable[..., object]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "len": len,
    "bool": bool,
    "iter": iter,
    "next": lambda iterator: list(itertools.islice(iterator, 1)),
}


def encode(value: Any, refer: Callable[[Any], dict[str, Any]]) -> Any:
    """Plain data as JSON keeps it; subclasses become their base, and `refer` names what is not plain."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [encode(item, refer) for item in value]
        case tuple():
            return {"kind": "tuple", "parts": encode(list(value), refer)}
        case frozenset():
            return {"kind": "frozenset", "parts": encode(list(value), refer)}
        case set():
            return {"kind": "set", "parts": encode(list(value), refer)}
        case dict():
            return {"kind": "dict", "parts": [[encode(key, refer), encode(value[key], refer)] for key in value]}
        case bytes():
            return {"kind": "bytes", "parts": list(value)}
        case complex():
            return {"kind": "complex", "parts": [value.real, value.imag]}
    return refer(value)


def decode(value: Any, resolve: Callable[[str, Any], object]) -> Any:
    """The inverse of encode; `resolve` gives what a reference stands for."""
    if isinstance(value, list):
        return [decode(item, resolve) for item in value]
    if not isinstance(value, dict):
        return value
    kind, parts = value["kind"], value["parts"]
    if kind in _REBUILT:
        return _REBUILT[kind](decode(parts, resolve))
    return resolve(kind, parts)


class Channel:
    """One JSON value a line, over a socket."""

    def __init__(self, descriptor: int) -> None:
        self._input = os.fdopen(descriptor, "rb")
        self._output = os.fdopen(os.dup(descriptor), "wb")

    def send(self, value: object) -> None:
        """Write one value as a line of JSON."""
        self._output.write(json.dumps(value).encode() + b"\n")
        self._output.flush()

    def receive(self) -> Any:
        """Raises EOFError where the other side is gone, ValueError for what is no message."""
        line = self._input.readline(LONGEST_MESSAGE)
        if not line:
            raise EOFError
        return json.loads(line)


class Remote:
    """Something that only the program has: a function, a class, an object that is not plain data.

    It is equal to itself alone: an object does not say what it is equal to.
    """

    def __init__(self, program: Program, kind: str, key: object) -> None:
        vars(self).update(_program=program, _reference={"kind": kind, "parts": key})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask("getitem", self, key)

    def __len__(self) -> Any:
        return self._program.ask("len", self)

    def __bool__(self) -> Any:
        return self._program.ask("bool", self)

    def __iter__(self) -> Any:
        return self._program.ask("iter", self)

    def __next__(self) -> Any:
        for item in self._program.ask("next", self):
            return item
        raise StopIteration


class Program:
    """The program under test, seen from the tests' sandbox."""

    def __init__(self, channel: Channel, end: Callable[[str, str], NoReturn]) -> None:
        self._channel, self._end = channel, end

    def load(self, text: str) -> None:
        """Run the program's text; raises RuntimeError or the like where that fails."""
        self._exchange(text)

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """The result of an operation in the program's sandbox; raises what it raised there."""
        asked = encode([list(args), kwargs], lambda value: self._reference(value))
        return self._exchange([operation, *asked])

    def _exchange(self, message: object) -> Any:
        try:
            self._channel.send(message)
            outcome, value = self._channel.receive()
            if outcome == "result":
                return decode(value, lambda kind, key: Remote(self, kind, key))
            names, text = value
        except (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
            # At once, past anything that the tests catch.
            self._end("failed", f"the program ended, or its answer cannot be read: {type(error).__name__}")
        raise next((_RAISED[name] for name in names if name in _RAISED), RuntimeError)(text)

    def _reference(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return dict(value._reference)
        name = getattr(value, "__name__", None)
        if isinstance(value, type) and vars(builtins).get(str(name)) is value:
            return {"kind": "builtin", "parts": name}
        raise TypeError(f"a {type(value).__name__} cannot be handed to the program, only plain data")


def run_tests(host: Channel, channel: Channel) -> NoReturn:
    """Run the tests of one request against the program on the channel, and tell the host how that went."""

    def end(status: str, error: str) -> NoReturn:
        host.send([status, error[:LONGEST_ERROR]])
        os._exit(0)

    request = host.receive()
    channel.receive()
    host.send("ready")
    program = Program(channel, end)
    namespace = _module("tests")
    try:
        program.load(request["program"])
        _execute(request["reference"], namespace)
        namespace |= {name: Remote(program, "name", name) for name in request["names"]}
        _execute(request["tests"], namespace)
    except BaseException as error:  # noqa: BLE001
        end("failed", f"{type(error).__name__}: {error}")
    end("passed", "")


def serve_program(channel: Channel) -> None:
    """Run the program's text, then do with its functions what the tests ask for."""
    channel.send("ready")
    namespace = _module("program")
    objects: dict[int, object] = {}

    def refer(value: object) -> dict[str, Any]:
        objects[len(objects)] = value
        return {"kind": "object", "parts": len(objects) - 1}

    def resolve(kind: str, key: Any) -> object:
        known: dict[str, dict[Any, object]] = {"name": namespace, "builtin": vars(builtins), "object": objects}
        return known[kind][key]

    def answer(message: Any) -> object:
        if isinstance(message, str):
            _execute(message, namespace)
            return None
        operation, *asked = message
        args, kwargs = decode(asked, resolve)
        return encode(_OPERATIONS[operation](*args, **kwargs), refer)

    while True:
        message = channel.receive()
        try:
            reply = ["result", answer(message)]
        except BaseException as error:  # noqa: BLE001
            reply = ["raised", [[kind.__name__ for kind in type(error).__mro__], str(error)[:LONGEST_ERROR]]]
        channel.send(reply)


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module; dataclasses look theirs up by name."""
    module = sys.modules[name] = types.ModuleType(name)
    return vars(module)


def _execute(text: str, namespace: dict[str, Any]) -> None:
    exec(compile(text, f"<{namespace['__name__']}>", "exec"), namespace)  # noqa: S102  # what the sandbox is for


def _limit(seconds: int, memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: seconds + 1,  # in case nobody is left to look at the clock
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def main() -> None:
    """ROLE SECONDS MEMORY_BYTES DESCRIPTOR...: be one of the two processes."""
    role, *numbers = sys.argv[1:]
    seconds, memory_bytes, *descriptors = map(int, numbers)
    _limit(seconds, memory_bytes)
    channels = [Channel(descriptor) for descriptor in descriptors]
    os.dup2(1, 2)  # standard input and output are the null device already
    sys.set_int_max_str_digits(0)
    if role == "tests":
        run_tests(*channels)
    serve_program(*channels)


if __name__ == "__main__":
    main()
