import io
import tomllib
import zipfile
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from scaleot_core.flower_app import CLIENT_APP, SERVER_APP

ROOT = Path(__file__).parents[2]


def test_flower_finds_both_apps_by_the_tables_of_pyproject() -> None:
    config, _ = load_and_validate(ROOT / "pyproject.toml")
    assert config["tool"]["flwr"]["app"]["components"] == {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}


def test_flowers_bundle_of_the_app_holds_our_code_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as bundle:
        names = {name for name in bundle.namelist() if not name.startswith(".info/")}
        config = tomllib.loads(bundle.read("pyproject.toml").decode())
    assert config["tool"]["flwr"]["app"]["publisher"] == "scaleot"
    outside = {name for name in names if not name.startswith(("fl_server/", "fl_clients/", "scaleot_core/"))}
    assert outside <= {"pyproject.toml", "README.md", "LICENSE"}
    ours = {
        f"{path.relative_to(ROOT)}"
        for package in ("fl_server", "fl_clients")
        for path in (ROOT / package).rglob("*.py")
    }
    assert ours <= names
