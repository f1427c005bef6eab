"""Programs that mean harm or claim what is not so: each fails in time, and nothing outside its sandbox notices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest

from helpers.sandboxes import needs_sandbox
from unmask.verifiers import sandbox
from unmask.verifiers.sandbox import Limits, Trial, Verdict, run_trials
from unmask.verifiers.seccomp import seccomp_filter

pytestmark = needs_sandbox

LIMITS = Limits(seconds=1, memory_megabytes=256)


def trial(program: str, tests: str = "assert f(1) == 2\nassert f(2) == 3") -> Trial:
    reference = "import math\nclass Node: pass\nclass Pair: pass\ndef f(x): return x + 1"
    return Trial(program=program, reference=reference, names=("f", "Node", "Pair"), tests=tests)


def timed(trials: dict[str, Trial]) -> dict[str, tuple[Verdict, float]]:
    def run(one: Trial) -> tuple[Verdict, float]:
        start = time.monotonic()
        (verdict,) = run_trials([one], LIMITS)
        return verdict, time.monotonic() - start

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(trials, pool.map(run, trials.values()), strict=True))


def assert_none_passes(programs: dict[str, str], ends: tuple[str, ...]) -> None:
    results = timed({name: trial(program) for name, program in programs.items()})
    print(*(f"{seconds:5.2f} s  {name}: {verdict}" for name, (verdict, seconds) in results.items()), sep="\n")
    assert {name: verdict.status for name, (verdict, _) in results.items() if verdict.status not in ends} == {}
    assert {name: seconds for name, (_, seconds) in results.items() if seconds > LIMITS.seconds + 2} == {}


HONEST = {
    "function": ("def f(x): return x + 1", "assert f(1) == 2"),
    "values": (
        "def f(x): return x",
        "for value in (None, True, 10**5000, 0.1, float('inf'), 1j, 'a\\ud800\\n\\0', b'\\0\\xff', [],\n"
        "              (1, [2, (3,)]), {1, 2}, frozenset({(1, 2)}), {(1, 2): {'a': [1]}, 'kind': 'set', 'parts': 1}):\n"
        "    assert f(value) == value and type(f(value)) is type(value)",
    ),
    "subclasses": (
        "from collections import Counter, OrderedDict, namedtuple\nP = namedtuple('P', 'a b')\n"
        "def f(x): return [Counter('aab'), OrderedDict(a=1), P(1, 2)]",
        "assert f(1) == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2)]",
    ),
    "exceptions": (
        "class Mine(ValueError): pass\ndef f(x): raise Mine('odd')",
        "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'odd'\nelse:\n    assert False",
    ),
    "its own classes": (
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\nPair = Node\n"
        "def f(node): return node.v + (f(node.left) if node.left else 0)",
        "root = Node(1)\nroot.left = Node(2)\nassert f(root) == 3 and root.left.v == 2\nassert f(Pair(5)) == 5",
    ),
    "iterators, lengths, items": (
        "def f(x): return (i * i for i in range(x)) if x else range(5)",
        "assert list(f(4)) == [0, 1, 4, 9]\nassert len(f(0)) == 5 and f(0)[2] == 2 and f(0)\nassert sum(f(3)) == 5",
    ),
    "types": ("def f(x, kind): return isinstance(x, kind)", "assert f(1, int) and not f(1, str)"),
    "keywords": ("def f(x, y=1): return x + y", "assert f(x=1, y=4) == 5"),
    "imports of the reference": ("def f(x): return x + 1.0", "assert math.isclose(f(1), 2)"),
    "dataclasses": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass D:\n    a: int\n"
        "def f(x): return D(x + 1).a",
        "assert f(1) == 2",
    ),
    "prints": ("print('x' * 10**6)\ndef f(x):\n    print(x)\n    return x + 1", "assert f(1) == 2"),
    "main is not run": ("def f(x): return x + 1\nif __name__ == '__main__': raise SystemExit", "assert f(1) == 2"),
    "sets have one order": ("def f(x): return str(set('abcdefgh'))", "assert f(1) == str(set('abcdefgh'))"),
    "its own directory": (
        "def f(x):\n    open('a', 'w').write('b' * 10**6)\n    return len(open('a').read())",
        "assert f(1) == 10**6",
    ),
    "a time limit of its own": ("import time\ndef f(x):\n    time.sleep(0.5)\n    return 2", "assert f(1) == 2"),
}


def test_run_trials_passes_honest_programs() -> None:
    results = timed({name: trial(*texts) for name, texts in HONEST.items()})
    assert {name: verdict for name, (verdict, _) in results.items() if verdict.status != "passed"} == {}


FORGED = {
    "empty": "",
    "wrong": "def f(x): return x",
    "half right": "def f(x): return 2",
    "no syntax": "def f(x) return",
    "syntax of compilers": "return 5",
    "prints": "print('passed')\nprint('[\"passed\", \"\"]')\ndef f(x): print('passed')",
    "writes to every descriptor": (
        'import os\nfor fd in range(40):\n    try: os.write(fd, b\'["passed", ""]\\n\')\n    except OSError: pass'
    ),
    "answers before it is asked": (
        "import os\nfor fd in range(40):\n    try: os.write(fd, b'[\"result\", null]\\n' * 9)\n    except OSError: pass"
    ),
    "sends nonsense": (
        "import os\nfor fd in range(3, 40):\n    try: os.write(fd, b'[' * 10**5 + b'\\n')\n    except OSError: pass"
    ),
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "os._exit when called": "import os\ndef f(x): os._exit(0)",
    "exits in atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "equal to all": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "integer equal to all": "class E(int):\n    def __eq__(self, o): return True\ndef f(x): return E(7)",
    "list equal to all": "class E(list):\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "lies about its class": (
        "class E:\n    __class__ = int\n    def __eq__(self, o): return True\n    def __index__(self): return 2\n"
        "def f(x): return E()"
    ),
    "true for all": (
        "class E:\n    def __bool__(self): return True\n    def __sub__(self, o): return 0\ndef f(x): return E()"
    ),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\n"
        "builtins.compile = builtins.exec = print\nbuiltins.__import__ = None\ndef f(x): return x"
    ),
    "patched unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return x",
    "reads frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        frame.f_globals['status'] = 'passed'\n        frame = frame.f_back\n    return 'passed'"
    ),
    "patches the harness": (
        "import sys\nmain = sys.modules['__main__']\n"
        "main.encode = lambda *a: {'kind': 'name', 'parts': 'f'}\ndef f(x): return 5"
    ),
    "looks through memory": (
        "import gc\nfor o in gc.get_objects():\n"
        "    if isinstance(o, dict) and 'tests' in o: raise SystemExit\ndef f(x): return x"
    ),
    "destructor": (
        "import os\nclass D:\n    def __del__(self): os._exit(0)\nd = D()\ndef f(x):\n    global d\n    del d"
    ),
    "tracing": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return x",
    "raises what tests raise": "def f(x): raise AssertionError",
    "raises StopIteration": "def f(x): raise StopIteration",
    "raises GeneratorExit": "def f(x): raise GeneratorExit",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(0, signal.SIGKILL)",
    "kills all": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "NUL": "def f(x):\0 return x + 1",
    "names that nobody has": "del __builtins__",
}


def test_run_trials_fails_forgeries() -> None:
    assert_none_passes(FORGED, ("failed",))


def test_run_trials_does_not_cut_weak_tests_short() -> None:
    """An exception of the program neither ends a loop over its results nor gets past a bare except for good."""
    loops = "for value, wanted in zip(map(f, [1, 2]), [2, 3]):\n    assert value == wanted"
    swallows = "try:\n    assert f(1) == 2\nexcept:\n    pass"
    results = timed(
        {
            "stop": trial("def f(x): raise StopIteration", loops),
            "stop, right": trial("def f(x): return x + 1", loops),
            "gone": trial("import os\ndef f(x): os._exit(0)", swallows),
            "not a comparison": trial("def f(x): return f", "assert f(1) == f(1) == 2 or f(1) > 1"),
            "tests that exit": trial("def f(x): return x + 1", "raise SystemExit(0)"),
            "tests that exit at once": trial("def f(x): return x + 1", "import os\nos._exit(0)"),
        }
    )
    passed = {name for name, (verdict, _) in results.items() if verdict.status == "passed"}
    assert passed == {"stop, right"}, results


EXHAUSTING = {
    "endless": "while True: pass",
    "endless when called": "def f(x):\n    while True: pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "power tower": "def f(x): return 9**9**9**9",
    "power tower of constants": "x = 9**9**9\ndef f(x): return x + 1",
    "catches all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignores signals": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "nesting": "x = " + "(" * 100_000,
    "nesting of values": "def f(x):\n    v = []\n    for _ in range(10**6): v = [v]\n    return v",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "long line": "x = " + "1+" * 50_000 + "1",
    "memory": "x = []\nwhile True: x.append(bytearray(2**24))",
    "memory at once": "x = bytearray(2**34)",
    "memory in files": (
        "def f(x):\n    for i in range(1000): open(str(i), 'wb').write(bytes(2**22))\n    return x + 1"
    ),
    "gigabyte file": "file = open('big', 'wb')\nfor _ in range(1024): file.write(bytes(2**20))",
    "sparse file": "import os\nos.truncate(os.open('big', os.O_CREAT | os.O_RDWR), 2**40)",
    "memory without a file": "import os\nos.memfd_create('big')",
    "gigabyte of output": "while True: print('x' * 2**20)",
    "gigabyte of errors": "import sys\nwhile True: print('x' * 2**20, file=sys.stderr)",
    "gigabyte of result": "def f(x): return 'x' * 2**27",
    "gigabyte of message": "def f(x): raise ValueError('x' * 2**27)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "stubborn fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(99,)).start()",
    "programs": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
    "namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "open files": "import os\nfor _ in range(100): os.open('.', 0)",
}


def test_run_trials_ends_exhaustion_in_time() -> None:
    assert_none_passes(EXHAUSTING, ("failed", "timed out"))


def test_sandbox_hides_everything_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_SECRET", "xyzzy")
    secret = tmp_path / "secret"
    secret.write_text("xyzzy")
    places = [str(tmp_path), str(Path.home()), "/", "/usr/lib", sys.base_prefix, "/var", "/dev", "/etc", "/proc"]
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    port = server.getsockname()[1]
    outcomes = {
        "writes": (
            "def f(place):\n    try: open(place + '/unmask-hostile', 'w')\n    except OSError: return 'refused'",
            f"for place in {places}: assert f(place) == 'refused', place",
        ),
        "connects": (
            f"import socket\ndef f(x):\n    try: socket.create_connection(('127.0.0.1', {port}), 1)\n"
            "    except OSError: return 'refused'",
            "assert f(1) == 'refused'",
        ),
        "interfaces": (
            "import socket\ndef f(x): return [name for _, name in socket.if_nameindex()]",
            "assert f(1) == ['lo']",
        ),
        "reads": (
            "import os\ndef f(path): return os.path.exists(path)",
            f"for path in ({str(secret)!r}, '/proc/1', '/etc/passwd'): assert f(path) is False, path",
        ),
        "environment": (
            "import os\ndef f(x): return set(os.environ)",
            "assert f(1) <= {'LC_CTYPE', 'PWD', 'PYTHONHASHSEED'}, f(1)",
        ),
        "privileges": (  # PR_CAPBSET_READ
            "import ctypes\ndef f(x): return [ctypes.CDLL(None).prctl(23, c) for c in range(38)]",
            "assert f(1) == [0] * 38",
        ),
        "the tests": (
            "import os\ndef f(x): return [os.getpid() < 9, os.listdir('/tmp')]",
            "open('/tmp/mine', 'w').close()\nassert f(1) == [True, []]",
        ),
    }
    results = timed({name: trial(*texts) for name, texts in outcomes.items()})
    assert {name: verdict for name, (verdict, _) in results.items() if verdict.status != "passed"} == {}
    with server, pytest.raises(BlockingIOError):
        server.accept()
    assert [place for place in places if (Path(place) / "unmask-hostile").exists()] == []


def status(process: int) -> list[str]:
    """State, parent and more of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def descendants(process: int) -> set[int]:
    parents = {
        one: int(found[1]) for one in map(int, filter(str.isdigit, os.listdir("/proc"))) if (found := status(one))
    }
    found, size = {process}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {process}


def alive(processes: set[int]) -> list[int]:
    return [process for process in processes if status(process)[:1] not in ([], ["Z"])]


def seen_while(thread: Thread, process: int, wanted: int) -> set[int]:
    """Descendants of a process, as soon as there are `wanted` of them."""
    before = descendants(process)
    thread.start()
    while len(now := descendants(process) - before) < wanted:
        assert thread.is_alive()
        time.sleep(0.02)
    return now


def test_sandbox_ends_daemons_even_where_forks_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_all = seccomp_filter()[-8:]
    monkeypatch.setattr(sandbox, "seccomp_filter", lambda: allow_all)
    daemon = (
        "import os, signal, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        for s in (1, 2, 3, 14, 15): signal.signal(s, signal.SIG_IGN)\n        time.sleep(1000)\n"
        "def f(x): return x + 1\n"
    )
    verdicts: list[Verdict] = []
    slow = trial(daemon, "import time\nassert f(1) == 2\ntime.sleep(0.7)")
    thread = Thread(target=lambda: verdicts.extend(run_trials([slow], LIMITS)))
    processes = seen_while(thread, os.getpid(), wanted=7)  # a bwrap and a Python for each sandbox, three daemons
    thread.join()
    # Gone, not dead and waiting for a process 1 that may never look.
    assert [process for process in processes if status(process)] == []
    assert [verdict.status for verdict in verdicts] == ["passed"]


def test_sandbox_does_not_outlive_a_killed_trainer() -> None:
    script = (
        "from unmask.verifiers.sandbox import *\n"
        "trial = Trial(program='while True: pass', reference='', names=('f',), tests='f()')\n"
        "run_trials([trial], Limits(seconds=500, memory_megabytes=256))"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script])
    thread = Thread(target=trainer.wait)
    try:
        processes = seen_while(thread, trainer.pid, wanted=4)
    finally:
        trainer.kill()
    thread.join()
    end = time.monotonic() + 5
    while alive(processes):
        assert time.monotonic() < end, alive(processes)
        time.sleep(0.02)


def test_run_trials_runs_each_different_trial_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Trial] = []

    def run(one: Trial, limits: Limits) -> Verdict:
        ran.append(one)
        return Verdict(status="passed" if "right" in one.program else "failed")

    monkeypatch.setattr(sandbox, "_run", run)
    verdicts = run_trials([trial("right"), trial("wrong"), trial("right")], LIMITS)
    assert [verdict.status for verdict in verdicts] == ["passed", "failed", "passed"]
    assert len(ran) == 2
