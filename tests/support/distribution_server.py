"""A distribution service in a process of its own, to be killed or measured.

Usage: python -m tests.support.distribution_server ADDRESS CERTIFICATE PRIVATE_KEY AUTHORITY BUNDLE...

Prints its port, serves every organisation until standard input ends, and prints its peak memory in MiB.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_server.bundle_index import BundleIndex, ServedObject, read_manifest
from fl_server.distribution import serve_bundles
from fl_server.memory import peak_memory_bytes
from scaleot_core.bundle.manifest import MANIFEST_FILE, OBJECTS_DIRECTORY
from scaleot_core.bundle.tls_files import TlsFiles

ROOT = Path(__file__).parent.parent.parent


def peak_mib() -> float:
    """Returns the peak of this process."""
    return peak_memory_bytes() / 1024**2


def index_of(*bundles: Path) -> BundleIndex:
    """Returns an index of sealed bundles that lie each in a directory of its own, outside any repository."""
    objects = {}
    for bundle in bundles:
        for sealed in read_manifest((bundle / MANIFEST_FILE).read_bytes())[1].objects:
            objects[sealed.name] = ServedObject(bundle / OBJECTS_DIRECTORY / sealed.name, sealed.size)
    return BundleIndex(objects)


def main() -> None:
    address, *paths = sys.argv[1:]
    certificate, private_key, authority, *bundles = map(Path, paths)
    index = index_of(*bundles)
    before = peak_mib()
    tls = TlsFiles(certificate, private_key, authority)
    with serve_bundles(lambda: index, address, tls=tls, is_allowed=lambda _: True) as port:
        print(port, flush=True)  # noqa: T201 - how its starter learns of it
        sys.stdin.read()
    print(before, peak_mib(), flush=True)  # noqa: T201 - likewise


@contextmanager
def server_process(address: str, tls: TlsFiles, *bundles: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Starts the service and yields its process and port; in the end it is killed."""
    command = [sys.executable, "-m", "tests.support.distribution_server", address]
    command += map(str, (tls.certificate, tls.private_key, tls.authority, *bundles))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    main()
