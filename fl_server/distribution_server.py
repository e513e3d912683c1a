"""The distribution service as a process of ``scaleot serve``: it serves, and keeps the repository from expiring."""

import math
import signal
import threading
import time
from datetime import UTC, datetime

from fl_server.deployment import Deployment
from fl_server.distribution import serve_bundles
from fl_server.downloads import DOWNLOADS_FILE, Downloads
from fl_server.published_index import published_index
from fl_server.registry import allowed_organisations
from fl_server.repository import refresh_repository
from fl_server.training_steps import TRAINING_FILE, TrainingSteps

REFRESH_SECONDS = 6 * 3600.0
"""The timestamp of the repository counts for a day."""
LOOK_SECONDS = 2.0


def run_distribution(deployment: Deployment) -> None:
    """Serves what the home has published until a signal comes, and lets streams that are under way finish.

    Raises:
        InputError: nothing is published, or the address cannot be listened on.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    index = published_index(deployment.home)
    downloads = Downloads(index, deployment.state / DOWNLOADS_FILE)
    training = TrainingSteps(deployment.state / TRAINING_FILE)
    refreshed = -math.inf
    with serve_bundles(
        index,
        str(deployment.distribution),
        tls=deployment.tls,
        is_allowed=allowed_organisations(deployment.registry),
        on_sent=downloads.on_sent,
        on_training=training.on_training,
    ):
        while not ended.wait(LOOK_SECONDS):
            if time.monotonic() - refreshed > REFRESH_SECONDS:
                refresh_repository(deployment.home, now=datetime.now(UTC))
                refreshed = time.monotonic()
            downloads.write()
            training.write()
