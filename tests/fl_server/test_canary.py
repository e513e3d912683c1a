import json
import time
from functools import partial
from pathlib import Path

import torch

from fl_clients.client_app import app
from fl_server.canary import Canary, emulator_canary
from fl_server.exchange import Exchange
from fl_server.owner import ADAPTER_FILE, CanarySettings, read_adapter, read_rounds
from fl_server.rounds import conduct_rounds
from scaleot_core.bundle import generate_signing_key, load_signing_key, save_data_key, save_verifying_key
from scaleot_core.progress import SilentReporter
from scaleot_core.shapes import TensorDict
from tests.support.federations import build_federation, initial_adapter, lora_spec, sealed_emulator, sentences
from tests.support.grids import Fault, SpoiltGrid, respoken


def canary_files(directory: Path) -> CanarySettings:
    owner = generate_signing_key()
    sealed = sealed_emulator(directory, owner)
    save_data_key(sealed.data_key, directory / "data.key")
    save_verifying_key(owner.public, directory / "owner.pub")
    with (directory / "canary.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in sentences(99, 12))
    return CanarySettings(
        bundle=sealed.path,
        data_key=directory / "data.key",
        owner_public_key=directory / "owner.pub",
        text=directory / "canary.jsonl",
        tolerance=1e-3,
    )


def poisoned(adapter: TensorDict) -> TensorDict:
    """An adapter far away that makes the tiny emulator worse, if only by a third of a percent: it knows no language."""
    generator = torch.Generator().manual_seed(1)
    return {name: tensor + 10 * torch.randn(tensor.shape, generator=generator) for name, tensor in adapter.items()}


def test_the_loss_is_that_of_the_adapter_inside_the_emulator(tmp_path: Path) -> None:
    spec = lora_spec()
    with emulator_canary(canary_files(tmp_path), spec, tmp_path) as canary:
        initial = initial_adapter(spec)
        wild = poisoned(initial)
        base, again, spoilt = canary.measure(initial), canary.measure(initial), canary.measure(wild)
    assert base == again, "it leaves the emulator as it was"
    assert canary.fault(base, base) is None and canary.fault(spoilt, base) is not None


def test_a_loss_that_is_no_number_is_a_fault() -> None:
    assert Canary(lambda _: 0.0, tolerance=0.5).fault(float("nan"), 1.0) is not None


def test_s19_a_round_of_a_poisoner_is_thrown_away_and_that_of_honest_clients_is_not(tmp_path: Path) -> None:
    canary = canary_files(tmp_path / "canary")
    for name in ("honest", "poisoned"):
        federation = build_federation(tmp_path / name, clients=2, rounds=1, canary=canary, max_update_norm=1e6)
        key = load_signing_key(federation.data_owner_directories[0] / "signing.key")
        wild = poisoned(federation.initial_adapter)
        faults: dict[int, Fault] = {0: partial(respoken, state=wild, signer=key)} if name == "poisoned" else {}
        configs = [{"data-owner": str(path)} for path in federation.data_owner_directories]
        exchange = Exchange(SpoiltGrid(app, configs, faults), clock=time.monotonic, sleep=time.sleep)
        conduct_rounds(exchange, federation.owner_directory, SilentReporter())
        (record,) = read_rounds(federation.owner_directory)
        assert record.canary_loss is not None and len(record.clients) == 2
        assert (record.aborted is not None) == (name == "poisoned")
        reached = read_adapter(federation.owner_directory / ADAPTER_FILE)
        is_the_base = all(torch.equal(reached[one], tensor) for one, tensor in federation.initial_adapter.items())
        assert is_the_base == (name == "poisoned")
