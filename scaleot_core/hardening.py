"""What a process that holds keys, plaintext or private text can do for itself without privileges.

It does not isolate: the process still reaches the network and every file of its user. That takes a container, a user of
its own or a network namespace: ``deploy/`` has them.
"""

import os
import resource
import sys
from pathlib import Path


def harden_process() -> None:
    """No core dumps, and new files for this user alone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def write_guarded_command(directory: Path, name: str, module: str) -> Path:
    """Makes ``directory`` hold one command, ``name``, which runs ``module.main``, and returns the directory.

    As the whole PATH of a SuperExec it leaves Flower no other program to start.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = directory / name
    command.unlink(missing_ok=True)
    command.touch(mode=0o700)
    command.write_text(f"#!{sys.executable} -P\nfrom {module} import main\n\nmain()\n", encoding="utf-8")
    return directory
