import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fl_server.flower_simulation import run_with_flower
from fl_server.in_process import run_in_process
from fl_server.owner import ADAPTER_FILE, INITIAL_ADAPTER_FILE, read_rounds
from scaleot_core.errors import EngineError, InputError
from scaleot_core.progress import SilentReporter
from tests.support.federations import Federation, build_federation

RUN = """
import sys
from pathlib import Path
from fl_server.flower_simulation import run_with_flower
from scaleot_core.progress import SilentReporter
run_with_flower(Path(sys.argv[1]), Path(sys.argv[2]), SilentReporter())
"""


def without_network() -> list[str]:
    """A command that runs another where there is loopback and nothing else, as far as this machine allows it."""
    command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not all(map(shutil.which, ("unshare", "ip"))) or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("needs unshare and ip, and the right to make a network namespace")
    return command


def processes_with(text: str) -> list[str]:
    """The command lines of the live processes in whose environment the text stands."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (directory / "environ").read_bytes() and directory.name != str(os.getpid()):
                found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def assert_no_process_stays(federation: Federation) -> None:
    deadline = time.monotonic() + 15
    while left := processes_with(str(federation.owner_directory)):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@pytest.mark.slow
def test_flowers_engine_needs_no_network_and_gives_the_in_process_result_to_the_last_bit(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    offline = without_network()
    federation = build_federation(tmp_path, clients=3, clients_per_round=2, rounds=2)
    run_in_process(federation.owner_directory, federation.data_owner_directories, SilentReporter())
    in_process, records = (
        (federation.owner_directory / ADAPTER_FILE).read_bytes(),
        read_rounds(federation.owner_directory),
    )
    federation.begin_again()
    done = subprocess.run(
        [*offline, sys.executable, "-c", RUN, str(federation.owner_directory), str(federation.data_owners_directory)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (federation.owner_directory / ADAPTER_FILE).read_bytes() == in_process
    for ours, flowers in zip(records, read_rounds(federation.owner_directory), strict=True):
        assert (ours.clients, ours.train_loss, ours.bytes_down) == (
            flowers.clients,
            flowers.train_loss,
            flowers.bytes_down,
        )
    assert_no_process_stays(federation)


@pytest.mark.slow
def test_a_server_that_fails_under_flower_is_reported_with_its_log(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    federation = build_federation(tmp_path, clients=2)
    (federation.owner_directory / INITIAL_ADAPTER_FILE).write_bytes(b"no safetensors")
    with pytest.raises(EngineError, match=rf"finished:failed[\s\S]*{INITIAL_ADAPTER_FILE} cannot be read"):
        run_with_flower(federation.owner_directory, federation.data_owners_directory, SilentReporter())
    assert_no_process_stays(federation)


def test_another_number_of_data_owners_than_the_run_expects_is_refused_before_flower_starts(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    federation = build_federation(tmp_path, clients=2)
    shutil.rmtree(federation.data_owner_directories[1])
    with pytest.raises(InputError, match="expects 2 clients; there are 1"):
        run_with_flower(federation.owner_directory, federation.data_owners_directory, SilentReporter())
