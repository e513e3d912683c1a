"""The rules that no single module can break alone: which way imports go, and which calls stand nowhere."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("scaleot_core", "fl_server", "fl_clients")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FORBIDDEN_MODULES = {
    "pickle": "runs code that a file brings",
    "marshal": "runs code that a file brings",
    "shelve": "pickles",
    "dill": "pickles",
    "cloudpickle": "pickles",
    "joblib": "pickles",
}
FORBIDDEN_CALLS = {
    "torch.load": "unpickles; weights are safetensors",
    "torch.save": "pickles; weights are safetensors",
    "numpy.load": "can unpickle; weights are safetensors",
    "eval": "runs code that a text brings",
    "exec": "runs code that a text brings",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "tempfile.mktemp": "gives a name that another process can take",
    "torch.manual_seed": "changes the global random state; pass a generator",
    "torch.seed": "changes the global random state; pass a generator",
    "numpy.random.seed": "changes the global random state; pass a generator",
    "random.seed": "changes the global random state; pass a generator",
    "random.shuffle": "draws on the global random state; pass a generator",
    "random.random": "draws on the global random state; pass a generator",
    "random.choice": "draws on the global random state; pass a generator",
    "random.sample": "draws on the global random state; pass a generator",
}
FORBIDDEN_ARGUMENTS = {
    ("trust_remote_code", True): "runs code that a model directory brings",
    ("weights_only", False): "unpickles",
    ("allow_pickle", True): "unpickles",
    ("shell", True): "starts a shell",
    ("verify", False): "skips a check of certificates",
}


def forbidden(source: str) -> Iterator[str]:
    """Yields what stands in a module's source though it must stand nowhere, with its line."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    forked = _inside_a_forked_random_state(tree, aliases)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert belongs in tests"
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in _modules(node):
                if module.split(".")[0] in FORBIDDEN_MODULES:
                    yield f"line {node.lineno}: {module} {FORBIDDEN_MODULES[module.split('.')[0]]}"
        if isinstance(node, ast.Call):
            name = _full_name(node.func, aliases)
            if name in FORBIDDEN_CALLS and not (name == "torch.manual_seed" and node in forked):
                yield f"line {node.lineno}: {name} {FORBIDDEN_CALLS[name]}"
            for keyword in node.keywords:
                given = (keyword.arg, keyword.value.value) if isinstance(keyword.value, ast.Constant) else None
                if given in FORBIDDEN_ARGUMENTS:
                    yield f"line {node.lineno}: {given[0]}={given[1]} {FORBIDDEN_ARGUMENTS[given]}"


def _inside_a_forked_random_state(tree: ast.AST, aliases: dict[str, str]) -> set[ast.AST]:
    """Returns what stands under ``with torch.random.fork_rng(...)``, which restores the global state."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and isinstance(call := node.items[0].context_expr, ast.Call)
        and _full_name(call.func, aliases) == "torch.random.fork_rng"
        for inner in ast.walk(node)
    }


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_holds_no_pickle_no_shell_no_foreign_code_and_no_global_random_state(path: Path) -> None:
    assert list(forbidden(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.random.seed(0)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
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
        import random, torch
        draw = random.Random(3).sample([1], 1)
        g = torch.Generator().manual_seed(3)
        with torch.random.fork_rng(devices=[]): torch.manual_seed(3)
        load_model("x", trust_remote_code=False)
    """
    assert list(forbidden("\n".join(line.strip() for line in allowed.splitlines()))) == []


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
    scripts = [*(ROOT / "deploy" / "scripts").iterdir(), ROOT / ".ci" / "run"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert text.startswith("#!/bin/sh\n") and "\nset -eu\n" in text, script
        assert len(text.splitlines()) < 30, script
        assert os.access(script, os.X_OK), script


def test_the_readme_prints_what_continuous_integration_runs() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert command == "pip install -e '.[dev]' && pytest"
    assert f"```sh\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
