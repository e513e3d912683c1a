"""The one app that a federation runs on Flower: a name for the installed modules, without any code of its own.

Flower lets a server send code to its clients, and anybody who reaches its control port to its server. Neither side
of ours runs what comes: it checks that what came is this app and nothing beside it, and so runs what is installed.
"""

import io
import tomllib
import zipfile
from types import ModuleType

from scaleot_core.errors import VerificationError

SERVER_APP = "fl_server.server_app:app"
CLIENT_APP = "fl_clients.client_app:app"
APP_FILE = "pyproject.toml"
APP = f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "scaleot-federation"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "scaleot"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"
"""

MAX_APP_BYTES = 64 * 1024
_CONTENTS_FILE = ".info/CONTENT"  # Flower's own list of what a bundle of an app holds
_FORMAT_KEYS = ("fab-format-version", "flwr-version-target")  # which its build may add


def check_app(bundle: bytes) -> None:
    """Checks that a bundle (a FAB, a zip file) which Flower is about to install is our app and holds nothing else.

    The digest would not do: two builds of zlib compress the same file to different bytes.

    Raises:
        VerificationError: ``app.unknown``, whatever else it is; what is in it is neither written nor quoted.
    """
    try:
        if len(bundle) > MAX_APP_BYTES:
            raise _unknown_app("more bytes")
        with zipfile.ZipFile(io.BytesIO(bundle)) as files:
            if sorted(files.namelist()) != sorted((APP_FILE, _CONTENTS_FILE)):
                raise _unknown_app("other files")
            if files.getinfo(APP_FILE).file_size > MAX_APP_BYTES:
                raise _unknown_app("more bytes")
            got = tomllib.loads(files.read(APP_FILE).decode())
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise _unknown_app("no bundle of an app") from error
    if got != tomllib.loads(APP):
        raise _unknown_app("another app")


def install_this_app_alone(runtime: ModuleType) -> None:
    """Puts ``check_app`` before ``install_from_fab`` of one of Flower's modules, which has no hook for it."""
    install = runtime.install_from_fab

    def install_checked(bundle: bytes, **options: object) -> object:
        check_app(bundle)
        return install(bundle, **options)

    runtime.install_from_fab = install_checked  # type: ignore[attr-defined]


def _unknown_app(got: str) -> VerificationError:
    return VerificationError("app.unknown", f"expected the installed app of this federation alone, got {got}")
