"""A whole small federation on disk: a tiny real model, its sealed emulator, and a directory for every side."""

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fl_server.owner import OwnerRunSettings, write_run
from fl_server.run_key import RunVoice
from scaleot_core.adapters.adapter import attach_adapter
from scaleot_core.adapters.spec import AdapterKind, AdapterSpec
from scaleot_core.bundle import (
    SealedBundle,
    SigningKey,
    VerifyingKey,
    generate_identity,
    generate_signing_key,
    issue_grant,
    save_identity,
    save_signing_key,
    save_verifying_key,
    seal_bundle,
)
from scaleot_core.compression.emulator import Emulator, build_emulator, write_emulator
from scaleot_core.compression.plan import LayerRole, plan_layers
from scaleot_core.federation.messages import Instructions, IntroductionRequest, Payload
from scaleot_core.federation.signing import certify_run
from scaleot_core.shapes import TensorDict
from tests.support.tiny_models import tiny_language_model

END = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
WORDS = ("the", "clinic", "saw", "a", "patient", "with", "mild", "pain", "and", "sent", "her", "home", "to", "rest")
HARMONIZER_RANK = 4


@dataclass(frozen=True)
class Federation:
    """Where everything lies."""

    owner_directory: Path
    data_owners_directory: Path
    settings: OwnerRunSettings
    initial_adapter: TensorDict
    owner_key: SigningKey
    members: dict[str, VerifyingKey]

    @property
    def data_owner_directories(self) -> tuple[Path, ...]:
        count = self.settings.clients
        return tuple(self.data_owners_directory / str(number) for number in range(count))

    def ask(self, statement: Instructions | IntroductionRequest, tensors: bytes = b"") -> Payload:
        """A request as the run's server signs it; the owner certifies a server of any run and bundle."""
        bundle = statement.bundle_digest if isinstance(statement, Instructions) else self.settings.bundle_digest
        not_after = END + timedelta(days=1)
        certificate = certify_run(statement.run, bundle, server_key().public, owner=self.owner_key, not_after=not_after)
        return RunVoice(server_key(), certificate).say(statement, tensors)

    def begin_again(self) -> None:
        """Makes the same run anew, for clients that know nothing of the first."""
        for directory in self.data_owner_directories:
            shutil.rmtree(directory / "releases", ignore_errors=True)
        write_run(self.owner_directory, self.settings, self.initial_adapter, owner=self.owner_key, members=self.members)


@cache
def server_key() -> SigningKey:
    return generate_signing_key()


@cache
def tiny_emulator() -> Emulator:
    """Adapter, kept and replaced layers of a six-layer Llama; always the same weights."""
    full = tiny_language_model("llama")
    plan = plan_layers(
        [5.0, 1.0, 4.0, 0.0, 3.0, 2.0],
        adapter={0, 2},
        replaced_layer_share=0.25,
        removed_rank_share=0.5,
    )
    generator = torch.Generator().manual_seed(0)
    hidden = full.layout.hidden_size
    harmonizers = {
        f"{index}.{name}.weight": 0.02 * torch.randn(shape, generator=generator)
        for index in plan.indices(LayerRole.REPLACED)
        for name, shape in (("down", (HARMONIZER_RANK, hidden)), ("up", (hidden, HARMONIZER_RANK)))
    }
    return build_emulator(full, plan, harmonizers, harmonizer_rank=HARMONIZER_RANK)


def lora_spec(*, freezes_down: bool = False) -> AdapterSpec:
    layers = tiny_emulator().plan.adapter_layers
    return AdapterSpec(AdapterKind.LORA, layers, 2, seed=7, freezes_down=freezes_down)


def sealed_emulator(directory: Path, owner: SigningKey) -> SealedBundle:
    files = directory / "emulator"
    files.mkdir(parents=True)
    write_emulator(tiny_emulator(), files)
    return seal_bundle(files, directory / "bundle", owner=owner, model={}, not_after=END)


def initial_adapter(spec: AdapterSpec) -> TensorDict:
    emulator = tiny_emulator()
    attached = attach_adapter(emulator.model, emulator.layout, spec)
    try:
        return attached.state()
    finally:
        attached.detach()


def sentences(seed: int, count: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, 6), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in row) for row in picks]


def build_federation(root: Path, *, clients: int = 3, examples: Sequence[int] = (), **changes: Any) -> Federation:
    """Writes a federation below ``root``; client ``i`` is organisation ``clinic-i`` with ``examples[i]`` sentences."""
    owner_key = generate_signing_key()
    sealed = sealed_emulator(root, owner_key)
    members = {}
    for number in range(clients):
        directory = root / "data-owners" / str(number)
        count = examples[number] if examples else 8 + number
        members[f"clinic-{number}"] = write_data_owner(
            directory, f"clinic-{number}", sealed, owner_key, sentences(number, count)
        )
    spec = changes.pop("adapter", lora_spec())
    fields = {
        "run": "run-1",
        "clients": clients,
        "clients_per_round": clients,
        "rounds": 2,
        "local_steps": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "optimizer": "adamw",
        "max_tokens": 32,
        "aggregation": "fedavg",
        "adapter": spec,
        "bundle_digest": sealed.digest,
        "seed": 3,
        "round_deadline_seconds": 120.0,
        **changes,
    }
    settings, adapter = OwnerRunSettings(**fields), initial_adapter(spec)
    owner_directory = root / "owner"
    owner_directory.mkdir()
    write_run(owner_directory, settings, adapter, owner=owner_key, members=members)
    return Federation(owner_directory, root / "data-owners", settings, adapter, owner_key, members)


def write_data_owner(
    directory: Path, organisation: str, sealed: SealedBundle, owner_key: SigningKey, texts: Sequence[str]
) -> VerifyingKey:
    """Returns the key that the data owner's signatures are verified with."""
    directory.mkdir(parents=True)
    signing_key = generate_signing_key()
    save_signing_key(signing_key, directory / "signing.key")
    identity = generate_identity()
    save_identity(identity, directory / "identity.key")
    save_verifying_key(owner_key.public, directory / "owner.pub")
    grant = issue_grant(sealed, owner=owner_key, organisation=organisation, recipient=identity.recipient, not_after=END)
    (directory / "grant").write_bytes(grant)
    with gzip.open(directory / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    (directory / "data-owner.toml").write_text(
        f'organisation = "{organisation}"\n'
        'data = "train.jsonl.gz"\n'
        f'bundle = "{sealed.path}"\n'
        'grant = "grant"\n'
        'identity_key = "identity.key"\n'
        'owner_public_key = "owner.pub"\n'
        'device = "cpu"\n',
        encoding="utf-8",
    )
    return signing_key.public


def rewrite_data_owner(directory: Path, old: str, new: str) -> None:
    path = directory / "data-owner.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
