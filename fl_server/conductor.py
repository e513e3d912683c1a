"""Lets approved nodes in and has the run's rounds run, through the death of whatever runs them.

Nothing in Flower starts a dead ServerApp again. The rounds themselves are durable (``fl_server.rounds``): a run that is
submitted again goes on at the round where the one before it ended.
"""

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fl_server.deployment import RUN_FILE, Deployment
from fl_server.grants import grant_to_members
from fl_server.node_keys import approved_nodes
from fl_server.registry import Registry
from fl_server.run_status import read_status
from fl_server.superlink import SuperLink, tail, wait_until_healthy, write_connection
from scaleot_core.bundle.files import replace_file
from scaleot_core.errors import EngineError
from scaleot_core.flower_app import APP, APP_FILE
from scaleot_core.progress import Reporter
from scaleot_core.supervision import child_environment, part_home

POLL_SECONDS = 2.0
ASK_SECONDS = 15.0
"""Between two questions to Flower, whose command takes seconds of a core to start."""
MAX_FRUITLESS_RUNS = 5
"""So many runs in a row that ended without a new round are a fault that another will not mend."""
LOG_LINES = 40
RECEIPTS_SECONDS = 120.0


def conduct(deployment: Deployment, reporter: Reporter) -> None:
    """Returns when every round of the run is done.

    Raises:
        EngineError: run after run ended without a new round; the last log is quoted.
        InputError: the run's files are missing or faulty.
    """
    folder = part_home(deployment.state, "rounds")
    app = folder / "app"
    app.mkdir(exist_ok=True)
    (app / APP_FILE).write_text(APP, encoding="utf-8")
    write_connection(folder, deployment.superlink.port, deployment.tls.authority)
    while not wait_until_healthy(deployment.superlink.port, deployment.tls.authority):
        reporter.note(f"no SuperLink answers at {deployment.superlink} yet: see its log in {deployment.state / 'logs'}")
    superlink = SuperLink(child_environment(folder), folder)
    _Conductor(deployment, superlink, app, reporter).run()


@dataclass
class _Conductor:
    deployment: Deployment
    superlink: SuperLink
    app: Path
    reporter: Reporter

    def __post_init__(self) -> None:
        self.registry = Registry(self.deployment.registry)
        self._registered: dict[str, str] = {}
        self._fruitless, self._rounds_before = 0, -1
        self._asked = -math.inf

    def run(self) -> None:
        while not (status := read_status(self.deployment.run)).is_finished:
            if time.monotonic() - self._asked >= ASK_SECONDS:
                self._check_progress()
                try:
                    self._step(len(status.history))
                except EngineError as error:  # the SuperLink is being started again: it is asked again later
                    self.reporter.note(str(error))
                self._asked = time.monotonic()
            time.sleep(POLL_SECONDS)
        self._let_end()
        self.reporter.note(f"all {status.rounds} rounds are done")

    def _step(self, done: int) -> None:
        self._let_in()
        run_id = self._current_run()
        if run_id is None or self.superlink.status(run_id).startswith("finished"):
            self._submit(run_id, done)

    def _let_end(self) -> None:
        """Gives the ServerApp the time to deliver the last receipts."""
        run_id, deadline = self._current_run(), time.monotonic() + RECEIPTS_SECONDS
        while run_id is not None and time.monotonic() < deadline:
            with suppress(EngineError):
                if self.superlink.status(run_id).startswith("finished"):
                    return
            time.sleep(POLL_SECONDS)

    def _let_in(self) -> None:
        """Registers nodes that were approved since the last look, and grants their organisations the emulator.

        The edge alone keeps revoked ones out.
        """
        approved = approved_nodes(self.registry)
        for name, public_key in approved.items():
            if self._registered.get(name) != public_key:
                file = self.app.parent / "node.pub"
                file.write_text(public_key, encoding="utf-8")
                self.superlink.register(file)
                self._registered[name] = public_key
                self.reporter.note(f"node of {name} registered")
        grant_to_members(self.deployment.home, self.registry)

    def _current_run(self) -> str | None:
        try:
            return str(json.loads((self.deployment.state / RUN_FILE).read_bytes())["run-id"])
        except (OSError, ValueError, KeyError):
            return None

    def _submit(self, ended: str | None, done: int) -> None:
        if ended is not None:
            self._fruitless = 0 if done > self._rounds_before else self._fruitless + 1
        self._rounds_before = done
        run_id = self.superlink.submit(self.app)
        content = json.dumps({"run-id": run_id}).encode()
        replace_file(self.deployment.state / RUN_FILE, content, mode=0o600)
        self.reporter.note(f"run {run_id} submitted, {done} rounds are done")

    def _check_progress(self) -> None:
        if self._fruitless >= MAX_FRUITLESS_RUNS:
            said = tail(self.superlink.log(self._current_run() or ""), LOG_LINES)
            raise EngineError(f"{self._fruitless} runs in a row ended without a new round; the last one said:\n{said}")
