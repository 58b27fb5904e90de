"""Code in processes of its own that have loaded torch and nothing of fastnmf: forks of this one,
since loading torch takes longer than most of what is run in them.

python fresh.py: reads jobs from its input, a line of JSON each, and prints their exit status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


class Fresh:
    """fresh(code): how a new process that runs it ended, and what it printed."""

    def __init__(self):
        command = [sys.executable, __file__]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen(command, **options)

    def __call__(self, code: str, *arguments: str, paths=(), environment=None):
        """paths: found before all others."""
        with tempfile.TemporaryDirectory() as folder:
            job = {"code": code, "arguments": arguments, "environment": environment or {}}
            job |= {"paths": [*map(str, paths)], "here": os.getcwd(), "folder": folder}
            print(json.dumps(job), file=self.server.stdin, flush=True)
            status = int(self.server.stdout.readline())
            said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(code, status, *said)

    def close(self):
        self.server.communicate()


def next_job() -> dict:
    """In a fork for each; this process ends with its input."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def prepare(arguments, environment, paths, here, folder) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), number)
    os.chdir(here)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    # as python -c has it
    sys.path[:1] = [*paths, ""]


if __name__ == "__main__":
    import torch  # noqa: F401

    job = next_job()
    code = job.pop("code")
    prepare(**job)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
