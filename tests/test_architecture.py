"""The rules that no single module can break alone: which way imports go, and which calls stand nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("scaleot_core", "fl_server", "fl_clients")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_imports_go_one_way() -> None:
    lint = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize("module", ["scaleot_core", "scaleot_core.cli", "scaleot_core.commands", "scaleot_core.config"])
def test_what_every_command_imports_does_not_bring_the_heavy_libraries(module: str) -> None:
    heavy = ["torch", "transformers", "flwr", "matplotlib", "pyarrow", "cryptography"]
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_scripts_are_posix_sh_that_stops_at_the_first_failure() -> None:
    found = (path for path in (ROOT / "deploy" / "scripts").iterdir() if path.is_file() and path.suffix != ".py")
    scripts = [*found, ROOT / ".ci" / "run"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert text.startswith("#!/bin/sh\n") and "\nset -eu\n" in text, script
        assert len(text.splitlines()) < 30, script
        assert os.access(script, os.X_OK), script


def test_the_readme_prints_what_continuous_integration_runs() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert command == "pip install -e '.[dev]' && pytest -n auto"
    assert f"```sh\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
