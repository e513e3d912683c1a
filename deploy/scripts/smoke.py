"""What ``deploy/scripts/smoke`` does: a federation by the commands that people type, every party as processes."""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fl_server.data import read_data
from fl_server.workspace import organisation
from scaleot_core.config import read_run_file, to_toml
from scaleot_core.privacy.units import PrivacyScope
from scaleot_core.progress import SilentReporter
from scaleot_core.run_file import RunFile
from scaleot_core.training.data import read_records, write_records

CLIENTS, ROUNDS = 3, 3
EPSILON = 8.0
RUN_SECONDS = 3600.0
STOP_SECONDS = 60.0
ADAPTER = "adapter/adapter_model.safetensors"
SMALL = (
    "federation.local_steps=4",
    "evaluation.examples=40",
    "importance.steps=20",
)
"""What keeps a run with SmolLM2 to minutes on two cores."""


@dataclass(frozen=True)
class Party:
    """A data owner's name and home."""

    name: str
    home: Path


class Smoke:
    """One federation in one directory; every command's output is in ``logs``."""

    def __init__(self, work: Path, run: RunFile) -> None:
        self.work, self.run = work, run
        self.owner = work / "owner"
        self.parties = tuple(Party(organisation(number), work / organisation(number)) for number in range(CLIENTS))
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Tells what is done, and when."""
        sys.stderr.write(f"{time.monotonic() - self.started:7.1f} s  {text}\n")

    def scaleot(self, *arguments: str | Path) -> str:
        """Runs a command to its end and returns what it printed; a failure ends the smoke test."""
        done = subprocess.run(  # noqa: S603 - no shell, and our own commands
            [_script(), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=self.work
        )
        if done.returncode:
            raise SystemExit(f"scaleot {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def reference(self) -> Path:
        """Runs the same rounds in one process."""
        file = self.work / "reference.toml"
        file.write_text(to_toml(self.run), encoding="utf-8")
        self.scaleot("simulate", file, "--out", self.work / "reference", "--json")
        return self.work / "reference"

    def settle(self) -> None:
        """Makes every party's home, admits the data owners, seals and publishes."""
        owner_fingerprint = self.scaleot("keygen", self.owner).strip()
        (self.owner / "owner.toml").write_text(to_toml(self.run), encoding="utf-8")
        self.scaleot("seal", self.owner / "owner.toml", "--home", self.owner)
        self.scaleot("publish", self.owner)
        partitions = read_data(self.run, SilentReporter()).partitions
        for party, records, port in zip(self.parties, partitions, _free_ports(CLIENTS), strict=True):
            data = self.work / f"{party.name}.jsonl"
            write_records(data, records)
            fingerprint = self.scaleot("org", "init", party.home, "--organisation", party.name, "--data", data).strip()
            own = {"organisation": party.name, "data": str(data), "device": "cpu", "node_port": port}
            (party.home / "data-owner.toml").write_text(tomli_w.dumps(own), encoding="utf-8")
            admission = self.work / f"{party.name}.admission.json"
            self.scaleot(
                *("org", "approve", self.owner, party.home / "enrolment.json", "--fingerprint", fingerprint),
                *("--distribution", self.run.serve.distribution, "--fleet", self.run.serve.fleet, "--out", admission),
            )
            self.scaleot("org", "accept", party.home, admission, "--fingerprint", owner_fingerprint)

    def federate(self, *options: str) -> list[dict[str, Any]]:
        """Runs the rounds between processes and returns their records."""
        with ExitStack() as stack:
            server = stack.enter_context(self._process("serve", self.owner, *options))
            for party in self.parties:
                stack.enter_context(self._process("join", party.home))
            status = server.wait(RUN_SECONDS)
        if status:
            raise SystemExit(f"scaleot serve: exit {status}; see {self.work / 'logs'} and {self.owner}/superlink/logs")
        rounds: list[dict[str, Any]] = json.loads((self.owner / "run/rounds.json").read_bytes())["rounds"]
        return rounds

    def plug_in(self, name: str, *options: str) -> Path:
        """Plugs in and measures."""
        self.scaleot("plug-in", self.owner, "--out", self.work / name, *options)
        return self.work / name

    def insist_on_privacy(self) -> None:
        """Has every data owner insist on dp-sgd, with a ledger of its own, and the model owner ask for it."""
        for party in self.parties:
            with (party.home / "data-owner.toml").open("a", encoding="utf-8") as file:
                own = {
                    "epsilon": EPSILON,
                    "delta": self.run.privacy.delta,
                    "mechanisms": ["dp-sgd"],
                    "declared_records": len(read_records(self.work / f"{party.name}.jsonl")),
                }
                file.write("\n" + tomli_w.dumps({"privacy": own}))
            self.scaleot("budget", party.home, "--create")
        privacy = self.run.privacy.model_copy(update={"mechanism": "dp-sgd", "epsilon": EPSILON})
        (self.owner / "owner.toml").write_text(
            to_toml(self.run.model_copy(update={"privacy": privacy})), encoding="utf-8"
        )

    @contextmanager
    def _process(self, verb: str, home: Path, *options: str) -> "Iterator[subprocess.Popen[bytes]]":
        logs = self.work / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{verb}-{home.name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - as above
                [_script(), verb, str(home), *options], stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def main(arguments: Sequence[str]) -> int:
    """Runs the smoke test; 0 if the processes reached what one process does, 1 if not."""
    parser = argparse.ArgumentParser(prog="deploy/scripts/smoke", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters, made on the spot")
    parser.add_argument("--work", type=Path, help="a new directory to keep; otherwise all is removed")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    asked = parser.parse_args(arguments)
    with ExitStack() as stack:
        if asked.work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaleot-smoke-")))
        else:
            work = asked.work.absolute()
            work.mkdir(mode=0o700)
        return _run(Smoke(work, _run_file(work, asked.set, is_tiny=asked.tiny)))


def _run(smoke: Smoke) -> int:
    smoke.say(f"{CLIENTS} data owners, {ROUNDS} rounds, in {smoke.work}")
    reference = smoke.reference()
    smoke.say("the same rounds in one process: done")
    smoke.settle()
    smoke.say("homes made, data owners admitted, emulator sealed and published")
    rounds = smoke.federate()
    _tell_rounds(smoke, rounds)
    tuned = smoke.plug_in("tuned")
    report = json.loads((tuned / "report.json").read_bytes())
    results, model_privacy = report["results"], report["model_privacy"]
    unattacked = json.loads((smoke.plug_in("unattacked", "--no-attacks") / "report.json").read_bytes())
    smoke.say(f"plugged in: loss {results['zero_shot']['loss']:.4f} -> {results['plug_in']['loss']:.4f}")
    expected = json.loads((reference / "report.json").read_bytes())["results"]
    is_same = _digest(tuned / ADAPTER) == _digest(reference / ADAPTER) and results == expected
    smoke.say(f"adapter {_digest(tuned / ADAPTER)}: {'the same' if is_same else 'NOT THE SAME'} as in one process")
    smoke.insist_on_privacy()
    _tell_rounds(smoke, smoke.federate("--new-run"))
    ledgers = [json.loads(smoke.scaleot("budget", party.home, "--json")) for party in smoke.parties]
    spent = [ledger["spent_epsilon"] for ledger in ledgers]
    is_private = all(0 < epsilon <= EPSILON for epsilon in spent)
    about = PrivacyScope.from_json(ledgers[0]).at_delta(ledgers[0]["terms"]["delta"])
    smoke.say(f"under dp-sgd each data owner spent epsilon {max(spent):.3f} of {EPSILON:g} {about}")
    found = {"is_same": is_same, "rounds": rounds, "spent_epsilon": spent, "model_privacy": model_privacy}
    found["unattacked"] = unattacked["model_privacy"]
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if is_same and is_private else 1


def _tell_rounds(smoke: Smoke, rounds: Sequence[dict[str, Any]]) -> None:
    for record in rounds:
        smoke.say(f"round {record['round']}: {', '.join(record['clients'])} in {record['seconds']:.1f} s")


def _run_file(work: Path, overrides: Sequence[str], *, is_tiny: bool) -> RunFile:
    fleet, distribution, superlink = _free_ports(3)
    fixed = [
        f"federation.clients={CLIENTS}",
        f"federation.clients_per_round={CLIENTS}",
        f"federation.rounds={ROUNDS}",
        "adapter.kind=lora",
        "model.device=cpu",
        "evaluation.full_fine_tuning=false",
        "model_privacy.strong_emulator_steps=4",
        "model_privacy.healing_steps=[0, 2]",
        f"serve.fleet=127.0.0.1:{fleet}",
        f"serve.distribution=127.0.0.1:{distribution}",
        f"serve.superlink_port={superlink}",
    ]
    if is_tiny:
        from tests.support.tiny_task import tiny_run, write_task

        task = work / "task"
        task.mkdir()
        return tiny_run(write_task(task), *fixed, *overrides)
    return read_run_file(None, [*SMALL, *fixed, *overrides])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _script() -> str:
    return str(Path(sys.executable).parent / "scaleot")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
