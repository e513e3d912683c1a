"""S29: no source makes code of what it reads, skips a check of TLS, foretells its noise, or shows a secret.

And what is installed is what is declared: every import, every dependency, every hash.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions

import click
import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scaleot_core.cli import VERBS_GROUP, _build_app
from tests.support.forbidden_calls import called, forbidden, predictable_sources
from tests.support.lock_files import LOCKS, read_lock
from tests.support.sources import PACKAGES, ROOT, SOURCES

SECRET_SOURCES = [
    name for name in SOURCES if name.startswith(("scaleot_core/privacy/", "scaleot_core/bundle/", "fl_clients/"))
]
GLOBAL_STATE = {
    "scaleot_core/privacy/public_generators.py": "an audit tries whether noise follows from it, and puts it back"
}
"""Sources that may change the global random state, and why."""
PUBLIC_DRAWS = {
    "scaleot_core/privacy/canaries.py": "an audit's canaries are known to its attacker by definition",
    "scaleot_core/privacy/directions.py": "both sides must make the same directions; only the scalars carry noise",
    **GLOBAL_STATE,
    "scaleot_core/privacy/gradient_way.py": "probes the kernels with public tokens",
    "fl_clients/local_update.py": "the order of batches without a mechanism; a mechanism samples with its own secret",
    "fl_clients/session.py": "as above, and where an adapter starts",
}
"""Private sources that may use a generator with a seed, and why what it draws is no secret."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECRET_WORD = re.compile(r"secret|passw|passphrase|token(?!s|izer)|private", re.IGNORECASE)


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_holds_no_pickle_no_shell_no_foreign_code_and_no_global_random_state(name: str) -> None:
    found = list(forbidden(SOURCES[name]))
    assert bool(found) == (name in GLOBAL_STATE), found
    assert all("global random state" in fault for fault in found)


@pytest.mark.parametrize("name", SECRET_SOURCES)
def test_noise_and_keys_draw_on_no_generator_that_a_seed_gives(name: str) -> None:
    assert bool(list(predictable_sources(SOURCES[name]))) == (name in PUBLIC_DRAWS)


def test_no_module_opens_a_grpc_connection_without_tls() -> None:
    assert not [name for name, source in SOURCES.items() if re.search(r"insecure_(port|channel)\b", source)]
    assert any("add_secure_port(" in source for source in SOURCES.values())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.normal()",
        "import torch\ntorch.randn(3)",
        "import yaml\nyaml.load('x')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import httpx\nhttpx.get('x', verify=False)",
        "import ssl\nx = ssl.CERT_NONE",
        "import hashlib\nhashlib.sha1(b'')",
        "load_model('x', trust_remote_code=True)",
        "eval('1')",
        "def f():\n    import random\n    random.shuffle([])",
        "import torch\nwith torch.no_grad():\n    torch.manual_seed(3)",
        "assert True",
    ],
)
def test_the_scan_finds_what_it_is_for(source: str) -> None:
    assert len(list(forbidden(source))) == 1


def test_the_scan_lets_pass_what_is_allowed() -> None:
    allowed = """
        import random, torch, yaml
        import numpy as np
        draw = random.Random(3).sample([1], 1)
        g = torch.Generator().manual_seed(3)
        torch.randn(3, generator=g)
        np.random.default_rng(3).normal()
        yaml.safe_load("x")
        with torch.random.fork_rng(devices=[]): torch.manual_seed(3)
        load_model("x", trust_remote_code=False)
    """
    assert list(forbidden("\n".join(line.strip() for line in allowed.splitlines()))) == []


@pytest.mark.parametrize(
    "source", ["import random", "import numpy as np\nnp.random.Philox(3)", "from scaleot_core.seeds import derive_seed"]
)
def test_the_scan_of_private_sources_finds_a_generator_with_a_seed(source: str) -> None:
    assert list(predictable_sources(source))


def test_no_environment_variable_carries_a_secret() -> None:
    variables = {name for source in SOURCES.values() for name in _environment_variables(source)}
    assert "SCALEOT_CACHE" in variables, "the scan finds none"
    assert [name for name in variables if SECRET_WORD.search(name)] == []


def _environment_variables(source: str) -> Iterator[str]:
    """Yields every text that is all of a variable's name; names held by a constant are found where it is written."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"[A-Z]+(_[A-Z0-9]+)+", node.value)
        ):
            yield node.value


def test_no_option_of_a_child_process_carries_a_secret_but_by_its_file() -> None:
    options = {option for source in SOURCES.values() for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', source)}
    assert "--isolation" in options, "the scan finds none"
    assert [name for name in options if SECRET_WORD.search(name) and not name.endswith(("-file", "-key"))] == []


def test_no_option_of_a_verb_takes_a_secret_but_by_its_file() -> None:
    app = typer.main.get_command(_build_app(tuple(entry_points(group=VERBS_GROUP))))
    parameters = list(_parameters(app))
    assert any("--json" in parameter.opts for _, parameter in parameters), "the scan finds none"
    for verb, parameter in parameters:
        if SECRET_WORD.search(parameter.name or "") or re.search(r"(^|_)key($|_)", parameter.name or ""):
            assert isinstance(parameter.type, click.Path), f"{verb}: {parameter.name}"


def _parameters(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Parameter]]:
    yield from ((name, parameter) for parameter in command.params)
    for child in getattr(command, "commands", {}).values():
        yield from _parameters(child, f"{name} {child.name}".strip())


def test_every_import_is_declared_and_every_declared_dependency_is_imported() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {canonicalize_name(name) for name in _imported_distributions()} == declared


def _imported_distributions() -> Iterator[str]:
    distributions = packages_distributions()
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - set(PACKAGES):
                yield distributions[top][0]


@pytest.mark.parametrize("torch", LOCKS)
def test_the_lock_has_a_release_with_hashes_for_every_dependency_within_its_declared_range(torch: str) -> None:
    locked = read_lock(torch)
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert locked[canonicalize_name(requirement.name)].version in requirement.specifier, line
    for name, pin in locked.items():
        assert pin.hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in pin.hashes), name


def test_the_sources_call_no_package_installer_but_for_pinned_assets() -> None:
    starters = {name for name, source in SOURCES.items() if re.search(r'"pip"|"uv"|ensurepip', source)}
    assert starters == {"scaleot_core/assets/wheels.py"}
    assert "subprocess.Popen" in called(SOURCES["scaleot_core/assets/wheels.py"])
