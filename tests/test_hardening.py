import stat
import subprocess
import sys
from pathlib import Path

from scaleot_core.hardening import write_guarded_command


def test_a_guarded_command_is_the_only_one_on_its_path_and_runs_our_module(tmp_path: Path) -> None:
    (tmp_path / "guarding.py").write_text("def main():\n    print('guarded')\n")
    commands = write_guarded_command(tmp_path / "bin", "flwr-clientapp", "guarding")
    write_guarded_command(tmp_path / "bin", "flwr-clientapp", "guarding")  # a second start makes it anew
    assert [path.name for path in commands.iterdir()] == ["flwr-clientapp"]
    assert stat.S_IMODE((commands / "flwr-clientapp").stat().st_mode) == 0o700
    environment = {"PATH": str(commands), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(["flwr-clientapp"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "guarded\n"


def test_a_hardened_process_leaves_no_core_and_files_for_its_user_alone(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom scaleot_core.hardening import harden_process\n"
        "harden_process()\nPath(sys.argv[1]).touch()\nprint(resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(0, 0)\n"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
