"""S29: the bill of materials names what the images install, neither more nor less, with every hash."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.lock_files import LOCKS, read_lock

SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "scripts" / "sbom"
PROGRAMS = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


@pytest.mark.skipif(shutil.which("cyclonedx-py", path=PROGRAMS) is None, reason="cyclonedx-bom is not installed")
@pytest.mark.parametrize("torch", LOCKS)
def test_s29_the_bill_of_materials_has_every_locked_release_with_its_hashes(torch: str) -> None:
    run = subprocess.run(
        [SCRIPT, torch], env={**os.environ, "PATH": PROGRAMS}, capture_output=True, text=True, check=True
    )
    bill = json.loads(run.stdout)
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "scaleot")
    found = {
        canonicalize_name(component["name"]): (
            component["version"],
            {
                f"sha256:{one['content']}"
                for reference in component["externalReferences"]
                for one in reference["hashes"]
            },
        )
        for component in bill["components"]
    }
    assert found == {name: (str(pin.version), set(pin.hashes)) for name, pin in read_lock(torch).items()}


@pytest.mark.parametrize("arguments", [(), ("rocm",)])
def test_the_script_fails_without_a_build_of_torch_that_has_a_lock(arguments: tuple[str, ...]) -> None:
    command = [SCRIPT, *arguments]
    run = subprocess.run(command, env={**os.environ, "PATH": PROGRAMS}, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert run.stdout == ""
    assert ("rocm" if arguments else "expected cpu or cuda") in run.stderr
