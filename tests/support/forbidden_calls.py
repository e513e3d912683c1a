"""What may stand in no source: code that a file brings, a shell, unchecked TLS, randomness that others can foretell."""

import ast
from collections.abc import Iterator

MODULES = {
    "pickle": "runs code that a file brings",
    "marshal": "runs code that a file brings",
    "shelve": "pickles",
    "dill": "pickles",
    "cloudpickle": "pickles",
    "joblib": "pickles",
    "telnetlib": "speaks in clear text",
    "ftplib": "speaks in clear text",
}
CALLS = {
    "torch.load": "unpickles; weights are safetensors",
    "torch.save": "pickles; weights are safetensors",
    "torch.hub.load": "runs code that a network brings",
    "numpy.load": "can unpickle; weights are safetensors",
    "yaml.load": "makes any object that a text names",
    "yaml.unsafe_load": "makes any object that a text names",
    "eval": "runs code that a text brings",
    "exec": "runs code that a text brings",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "subprocess.getoutput": "starts a shell",
    "subprocess.getstatusoutput": "starts a shell",
    "asyncio.create_subprocess_shell": "starts a shell",
    "tempfile.mktemp": "gives a name that another process can take",
    "ssl._create_unverified_context": "skips a check of certificates",
    "hashlib.md5": "is broken",
    "hashlib.sha1": "is broken",
    "torch.manual_seed": "changes the global random state; pass a generator",
    "torch.seed": "changes the global random state; pass a generator",
    "numpy.random.seed": "changes the global random state; pass a generator",
}
ARGUMENTS = {
    ("trust_remote_code", True): "runs code that a model directory brings",
    ("weights_only", False): "unpickles",
    ("allow_pickle", True): "unpickles",
    ("shell", True): "starts a shell",
    ("verify", False): "skips a check of certificates",
    ("check_hostname", False): "skips a check of certificates",
}
NAMES = {"ssl.CERT_NONE": "skips a check of certificates"}
NUMPY_SOURCES = {"default_rng", "Generator", "BitGenerator", "SeedSequence", "Philox", "PCG64"}
"""Of ``numpy.random``: what makes a generator; everything else draws on the global state."""
RANDOM_SOURCES = {"Random", "SystemRandom"}
"""Of ``random``, likewise."""
TORCH_DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("normal", "bernoulli", "multinomial", "poisson"),
}
PREDICTABLE = ("random", "numpy.random", "torch.Generator", "scaleot_core.seeds")
"""Generators that a seed gives: right for a fair draw that can be repeated, wrong for a key and for privacy's noise."""


def forbidden(source: str) -> Iterator[str]:
    """Yields what stands in a module's source though it must stand nowhere, with its line."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    forked = _inside_a_forked_random_state(tree, aliases)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert belongs in tests: python -O drops it"
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in _modules(node):
                if module.split(".")[0] in MODULES:
                    yield f"line {node.lineno}: {module} {MODULES[module.split('.')[0]]}"
        if isinstance(node, ast.Attribute | ast.Name) and (name := full_name(node, aliases)) in NAMES:
            yield f"line {node.lineno}: {name} {NAMES[name]}"
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {fault}" for fault in _faults_of(node, aliases, is_forked=node in forked))


def predictable_sources(source: str) -> Iterator[str]:
    """Yields each import and use of a generator that a seed gives, with its line."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        elif isinstance(node, ast.Attribute):
            names = [full_name(node, aliases)]
        else:
            continue
        yield from (f"line {node.lineno}: {name}" for name in names if name in PREDICTABLE)


def called(source: str) -> set[str]:
    """Returns the full names of everything that a module calls."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    return {full_name(node.func, aliases) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    """Returns a dotted name with its import resolved; empty where the expression is no name."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, aliases)}.{node.attr}"
    return aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _faults_of(call: ast.Call, aliases: dict[str, str], *, is_forked: bool) -> Iterator[str]:
    name = full_name(call.func, aliases)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in CALLS and not (name == "torch.manual_seed" and is_forked):
        yield f"{name} {CALLS[name]}"
    elif _draws_on_the_global_state(name, keywords) and not is_forked:
        yield f"{name} draws on the global random state; pass a generator"
    for given in ((arg, value.value) for arg, value in keywords.items() if isinstance(value, ast.Constant)):
        if given in ARGUMENTS:
            yield f"{given[0]}={given[1]} {ARGUMENTS[given]}"


def _draws_on_the_global_state(name: str, keywords: dict[str | None, ast.expr]) -> bool:
    module, _, function = name.rpartition(".")
    if module == "torch":
        return function in TORCH_DRAWS and not {"generator", None} & set(keywords)
    known = {"random": RANDOM_SOURCES, "numpy.random": NUMPY_SOURCES}
    return module in known and function not in known[module]


def _inside_a_forked_random_state(tree: ast.AST, aliases: dict[str, str]) -> set[ast.AST]:
    """Returns what stands under ``with torch.random.fork_rng(...)``, which restores the global state."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and isinstance(call := node.items[0].context_expr, ast.Call)
        and full_name(call.func, aliases) == "torch.random.fork_rng"
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
