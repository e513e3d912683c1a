"""The text of every module that is shipped, by its path from the repository's root."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("scaleot_core", "fl_server", "fl_clients")
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
