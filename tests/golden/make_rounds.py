"""Made ``rounds-1``: a finished run of two rounds, one update refused, without its private key.

Run from the repository's root: python -m tests.golden.make_rounds DESTINATION
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from flwr.app import Message

from fl_server.rounds import conduct_rounds
from scaleot_core.progress import SilentReporter
from tests.support.grids import respoken, set_stage
from tests.support.updates import SHAPES


def main() -> None:
    def too_large(reply: Message) -> Message:
        return respoken(reply, state={name: torch.full(shape, 1e6) for name, shape in SHAPES.items()})

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "rounds-1"
        directory.mkdir()
        stage = set_stage(directory, clients=2, faults={1: too_large}, rounds=2)
        conduct_rounds(stage.exchange, directory, SilentReporter())
        for path in (directory / "run.key", directory / "rounds.lock"):
            path.unlink()
        shutil.copytree(directory, sys.argv[1])


if __name__ == "__main__":
    main()
