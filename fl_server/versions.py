"""Which versions a result comes from."""

import importlib.metadata
import platform

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "peft", "opacus", "dp-accounting", "cryptography")
PACKAGES = ("scaleot", "flwr", *_LIBRARIES)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
