"""Runs Python programs in processes forked from one that has imported torch and Juniper.

A new interpreter takes seconds to import them. Each program has its own process, arguments, folder, environment and
streams. What only a new interpreter shows, such as what is imported, is tested with `subprocess`.
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path

_servers: list[subprocess.Popen] = []  # one a test process


def run_python(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout: int = 300,
) -> subprocess.CompletedProcess:
    """Does what `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` does.

    Args:
        arguments: A file, `-m` and a module, or `-c` and a program, with its arguments.
        cwd: The working folder.
        env: The environment; None for that of the tests.
        stdin: What the program can read.
        timeout: Seconds after which the process is killed.
    """
    with tempfile.TemporaryDirectory() as name:
        files = {stream: str(Path(name) / stream) for stream in ("stdin", "stdout", "stderr")}
        Path(files["stdin"]).write_text(stdin)
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
            "timeout": timeout,
            **files,
        }
        server = _server()
        print(json.dumps(request), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        output, errors = (Path(files[stream]).read_text() for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess([sys.executable, *request["arguments"]], code, output, errors)


def _server() -> subprocess.Popen:
    if not _servers:
        command = [sys.executable, __file__]
        _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    return _servers[0]


def _serve() -> None:
    """Runs the programs of the requests one after the other; ends when the tests do."""
    _warm()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _warm() -> None:
    """Imports what most programs use, and lets torch prepare what the check of a model on fake tensors needs.

    The objects are exempt from garbage collection, which would copy their pages into every process, at its end too.
    """
    import torch.distributed.checkpoint  # noqa: F401

    import ml.runs.launch

    ml.load("recipes/tiny.gin")
    gc.collect()
    gc.freeze()


def _become(request: dict) -> None:
    """Runs a program in this process as if it had been started with it."""
    signal.alarm(request["timeout"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    writing = os.O_WRONLY | os.O_CREAT
    for number, (stream, mode) in enumerate({"stdin": os.O_RDONLY, "stdout": writing, "stderr": writing}.items()):
        opened = os.open(request[stream], mode)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0)  # noqa: SIM115  # the old one has read the requests ahead
    first, *rest = request["arguments"]
    if first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif first == "-m":
        sys.path[0], sys.argv = request["cwd"], ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve()
