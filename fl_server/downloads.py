"""How much of the newest emulator each organisation has fetched, as the distribution service sees it."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fl_server.bundle_index import BundleIndex
from scaleot_core.bundle.distribution import RangeRequest
from scaleot_core.bundle.files import replace_file

DOWNLOADS_FILE = "downloads.json"


class Downloads:
    """Counts distinct ranges of the objects that are served now; a service that starts anew begins at none."""

    def __init__(self, index: Callable[[], BundleIndex], path: Path) -> None:
        self._index, self._path = index, path
        self._lock = threading.Lock()
        self._sent: dict[str, dict[tuple[str, int], int]] = {}

    def on_sent(self, organisation: str, request: RangeRequest) -> None:
        """Takes down a range that went out to an organisation."""
        place = (request.object, request.start)
        with self._lock:
            ranges = self._sent.setdefault(organisation, {})
            ranges[place] = max(ranges.get(place, 0), request.length)

    def write(self) -> None:
        """Writes each organisation's share, between 0 and 1, for ``scaleot status``; a full disk costs no more."""
        objects = self._index().objects
        size = sum(served.size_bytes for served in objects.values())
        with self._lock:
            shares = {
                name: min(sum(length for (of, _), length in ranges.items() if of in objects) / max(size, 1), 1.0)
                for name, ranges in self._sent.items()
            }
        with suppress(OSError):
            replace_file(self._path, json.dumps(shares).encode(), mode=0o600)


def read_downloads(path: Path) -> dict[str, float]:
    """Returns each organisation's share, between 0 and 1; empty where nothing was written yet."""
    try:
        shares: dict[str, float] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return shares
