import json
from pathlib import Path

from fl_server.bundle_index import BundleIndex, ServedObject
from fl_server.downloads import Downloads, read_downloads
from scaleot_core.bundle.distribution import RangeRequest

FIRST, SECOND, OLD = "a" * 64, "b" * 64, "c" * 64


def downloads(path: Path) -> Downloads:
    objects = {FIRST: ServedObject(path, 100), SECOND: ServedObject(path, 300)}
    return Downloads(lambda: BundleIndex(objects), path)


def asked(name: str, start: int, length: int) -> RangeRequest:
    return RangeRequest(object=name, start=start, length=length)


def test_each_organisations_share_counts_a_range_once_and_no_older_object(tmp_path: Path) -> None:
    counted = downloads(tmp_path / "downloads.json")
    for request in (asked(FIRST, 0, 100), asked(FIRST, 0, 100), asked(SECOND, 0, 50), asked(OLD, 0, 100)):
        counted.on_sent("clinic", request)
    counted.on_sent("ward", asked(SECOND, 0, 300))
    counted.write()
    assert read_downloads(tmp_path / "downloads.json") == {"clinic": 150 / 400, "ward": 300 / 400}


def test_no_share_passes_one(tmp_path: Path) -> None:
    counted = downloads(tmp_path / "downloads.json")
    for start in range(0, 100, 10):
        counted.on_sent("clinic", asked(FIRST, start, 100 - start))
    counted.on_sent("clinic", asked(SECOND, 0, 300))
    counted.write()
    assert read_downloads(tmp_path / "downloads.json") == {"clinic": 1.0}


def test_what_is_not_there_or_damaged_is_no_download(tmp_path: Path) -> None:
    assert read_downloads(tmp_path / "none") == {}
    (tmp_path / "bad").write_text(json.dumps({})[:1])
    assert read_downloads(tmp_path / "bad") == {}
