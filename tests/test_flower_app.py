"""The app that both sides let Flower install, and no other."""

import io
import zipfile

import pytest
from flwr.cli.build import build_fab_from_files

from scaleot_core.errors import VerificationError
from scaleot_core.flower_app import APP, APP_FILE, MAX_APP_BYTES, check_app


def bundle(files: dict[str, bytes]) -> bytes:
    return build_fab_from_files(files)[0]


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_what_flower_builds_of_the_app_is_let_in() -> None:
    check_app(bundle({APP_FILE: APP.encode()}))


@pytest.mark.parametrize(
    "stranger",
    [
        bundle({APP_FILE: APP.encode(), "fl_clients/client_app.py": b"import socket\n"}),
        bundle({APP_FILE: APP.replace("fl_clients.client_app", "os").encode()}),
        bundle({APP_FILE: APP.replace("dependencies = []", 'dependencies = ["torch"]').encode()}),
        zipped({APP_FILE: APP.encode()}),
        zipped({APP_FILE: APP.encode(), "../evil.py": b""}),
        zipped({APP_FILE: b"\xff", ".info/CONTENT": b""}),
        zipped({APP_FILE: b"x" * (MAX_APP_BYTES + 1), ".info/CONTENT": b""}),
        bundle({APP_FILE: APP.encode()})[:-30],
        b"",
        b"P" * (MAX_APP_BYTES + 1),
    ],
    ids=["code", "other-module", "dependency", "no-contents", "traversal", "no-text", "bomb", "cut", "empty", "large"],
)
def test_any_other_app_is_refused(stranger: bytes) -> None:
    with pytest.raises(VerificationError, match=r"app\.unknown"):
        check_app(stranger)
