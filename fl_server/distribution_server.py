"""The distribution service as a process of ``scaleot serve``."""

import signal
import threading

from fl_server.bundle_index import index_bundles
from fl_server.deployment import Deployment
from fl_server.distribution import serve_bundles


def run_distribution(deployment: Deployment) -> None:
    """Serves the sealed bundles of the home until a signal comes, and lets streams that are under way finish.

    Raises:
        InputError: the home has no sealed bundle, or the address cannot be listened on.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    index = index_bundles(sorted((deployment.home / "sealed").iterdir()))
    allowed = lambda _: True  # noqa: E731
    with serve_bundles(index, str(deployment.distribution), tls=deployment.tls, is_allowed=allowed):
        ended.wait()
