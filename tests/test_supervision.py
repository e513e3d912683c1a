import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scaleot_core import supervision
from scaleot_core.errors import InputError
from scaleot_core.progress import SilentReporter
from scaleot_core.supervision import SupervisedProcess, child_environment, sole_process, supervise

SUPERVISOR = """
import sys
from pathlib import Path
from scaleot_core.progress import LogReporter
from scaleot_core.supervision import SupervisedProcess, child_environment, supervise
folder = Path(sys.argv[1])
worker = "import os, time; open(sys.argv[1] + '/pid', 'w').write(str(os.getpid())); time.sleep(300)"
command = (sys.executable, "-c", "import sys; " + worker, sys.argv[1])
sys.exit(supervise([SupervisedProcess("worker", command, child_environment(folder / "worker"))], folder, LogReporter()))
"""


def process(name: str, code: str, folder: Path, *, is_purpose: bool = False) -> SupervisedProcess:
    return SupervisedProcess(name, (sys.executable, "-c", code), child_environment(folder / name), is_purpose)


def wait_for(path: Path, seconds: float = 30.0) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def test_the_whole_ends_with_the_exit_code_of_its_purpose(tmp_path: Path) -> None:
    parts = [
        process("other", "import time; time.sleep(300)", tmp_path),
        process("purpose", "raise SystemExit(3)", tmp_path, is_purpose=True),
    ]
    assert supervise(parts, tmp_path, SilentReporter()) == 3


def test_a_process_that_dies_is_started_again_and_its_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.05)
    mortal = f"open({str(tmp_path / 'lives')!r}, 'a').write('x'); print('a life'); raise SystemExit(1)"
    watcher = (
        f"import pathlib, time\nlives = pathlib.Path({str(tmp_path / 'lives')!r})\n"
        "while not lives.exists() or len(lives.read_text()) < 3: time.sleep(0.05)"
    )
    parts = [process("mortal", mortal, tmp_path), process("purpose", watcher, tmp_path, is_purpose=True)]
    assert supervise(parts, tmp_path, SilentReporter()) == 0
    assert (tmp_path / "logs/mortal.log").read_text().count("a life") >= 3


def test_a_process_whose_files_have_changed_is_started_again_once_they_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(supervision, "LOOK_SECONDS", 0.05)
    file, lives = tmp_path / "file", tmp_path / "lives"
    file.write_text("first")
    reader = (
        f"import time\nread = open({str(file)!r}).read()\nopen({str(lives)!r}, 'a').write(read + ' ')\ntime.sleep(300)"
    )
    changes = (
        f"import pathlib, time\nfile, lives = pathlib.Path({str(file)!r}), pathlib.Path({str(lives)!r})\n"
        "def wait_for(text):\n    while not lives.exists() or lives.read_text() != text: time.sleep(0.05)\n"
        "wait_for('first ')\ntime.sleep(1)\nfile.write_text('half')\ntime.sleep(1)\nwait_for('first ')\n"
        "file.write_text('second')\nwait_for('first second ')\ntime.sleep(1)\nwait_for('first second ')"
    )

    def usable() -> bytes | None:
        data = file.read_bytes()
        return None if data in (b"half", b"") else data

    command, environment = (sys.executable, "-c", reader), child_environment(tmp_path / "reader")
    parts = [
        SupervisedProcess("reader", command, environment, start_files=usable),
        process("purpose", changes, tmp_path, is_purpose=True),
    ]
    assert supervise(parts, tmp_path, SilentReporter()) == 0


def test_a_process_that_does_not_end_when_its_files_have_changed_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_PAUSE_SECONDS", "LOOK_SECONDS", "DRAIN_SECONDS"):
        monkeypatch.setattr(supervision, name, 0.05)
    lives = tmp_path / "lives"
    stubborn = (
        f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(lives)!r}, 'a').write('x')\ntime.sleep(300)"
    )
    watcher = (
        f"import pathlib, time\nlives = pathlib.Path({str(lives)!r})\n"
        "while not lives.exists() or len(lives.read_text()) < 2: time.sleep(0.05)"
    )
    command = (sys.executable, "-c", stubborn)
    environment = child_environment(tmp_path / "stubborn")
    parts = [
        SupervisedProcess(
            "stubborn", command, environment, start_files=lambda: lives.read_bytes()[:1] if lives.exists() else b""
        ),
        process("purpose", watcher, tmp_path, is_purpose=True),
    ]
    assert supervise(parts, tmp_path, SilentReporter()) == 0


def test_a_killed_purpose_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.05)
    mark = tmp_path / "mark"
    code = (
        f"import os, pathlib, signal\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert supervise([process("purpose", code, tmp_path, is_purpose=True)], tmp_path, SilentReporter()) == 0


def test_a_child_is_kept_from_the_network_by_the_variables_that_its_libraries_read(tmp_path: Path) -> None:
    asked = (
        "from huggingface_hub import constants\n"
        "from transformers.utils.hub import is_offline_mode\n"
        "print(constants.HF_HUB_OFFLINE, is_offline_mode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], env=child_environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_supervisor_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path)], start_new_session=True)
    try:
        worker = psutil.Process(int(wait_for(tmp_path / "pid")))
        supervisor.send_signal(number)
        assert supervisor.wait(30) == (0 if number == signal.SIGTERM else -number)
        worker.wait(30)
    finally:
        supervisor.kill()


def test_no_secret_of_the_environment_reaches_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = child_environment(tmp_path)
    assert "hidden" not in str(environment)
    assert "https_proxy" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_a_second_process_on_one_state_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom scaleot_core.supervision import sole_process\n"
        f"with sole_process(Path({str(tmp_path / 'lock')!r})):\n    print('up', flush=True); time.sleep(300)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        with pytest.raises(InputError, match=str(holder.pid)), sole_process(tmp_path / "lock"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with sole_process(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_goes_along_when_the_process_becomes_another_program(tmp_path: Path) -> None:
    program = "import time; print('up', flush=True); time.sleep(300)"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom scaleot_core.supervision import sole_process\n"
        f"with sole_process(Path({str(tmp_path / 'lock')!r})):\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', {program!r}])\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        with pytest.raises(InputError), sole_process(tmp_path / "lock"):
            pass
    finally:
        holder.kill()
        holder.communicate()
