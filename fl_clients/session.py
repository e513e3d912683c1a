"""A data owner's part in a round: check what came, tune the adapter in the emulator on its own text, answer."""

import importlib.metadata
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch

from fl_clients.policy import DataOwnerFile, PermittedInstructions, permit, read_data_owner_file
from fl_clients.releases import LocalUpdate, Releases
from fl_clients.requests import check_bundle, keep_receipts, open_request
from fl_clients.training_step import StepReporter
from scaleot_core.adapters.adapter import AttachedAdapter, attach_adapter
from scaleot_core.bundle import (
    VerifiedBundle,
    load_identity,
    load_signing_key,
    load_verifying_key,
    open_bundle,
    read_bundle,
    verify_bundle,
    verify_grant,
)
from scaleot_core.compression.emulator import Emulator, read_emulator
from scaleot_core.errors import InputError, InstructionsRefusedError
from scaleot_core.federation.messages import (
    Instructions,
    Payload,
    UpdateStatement,
    digest_of,
    encode_statement,
)
from scaleot_core.federation.signing import sign
from scaleot_core.federation.validation import AdapterSchema, decode_tensors, encode_tensors
from scaleot_core.models.devices import chosen_devices
from scaleot_core.privacy.private_examples import private_examples
from scaleot_core.progress import Reporter
from scaleot_core.seeds import batches_seed
from scaleot_core.training.data import (
    STAND_IN,
    EncodedExample,
    read_records,
)
from scaleot_core.training.local import LocalTraining, has_diverged, train_adapter
from scaleot_core.training.readable import readable_examples


class EmulatorShelf:
    """The emulators that this process has opened: one of each bundle, whoever of its clients asks.

    What is lent is frozen and shared, so one client at a time has it; PyTorch uses every core anyway. Sharing saves
    memory and no check: every client verifies the signed manifest, which fixes every byte of the emulator, with its own
    pinned key, and its own grant, itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._emulators: dict[tuple[str, str, str], Emulator] = {}
        self._verified: dict[tuple[Path, tuple[str, str]], VerifiedBundle] = {}

    @contextmanager
    def lend(self, own: DataOwnerFile, bundle_digest: str, *, now: datetime) -> Iterator[Emulator]:
        """Lends the emulator of the data owner's bundle, which must be the one of ``bundle_digest``.

        Raises:
            VerificationError: bundle or grant are not the owner's, not for this data owner, or out of date.
            InstructionsRefusedError: the server works with another bundle.
            InputError: a file of the data owner's own is missing, or its device is not there.
            ModelError: the bundle holds no emulator.
        """
        with self._lock:
            bundle = self._verify(own, bundle_digest, now)
            grant, identity = _read_grant(own.grant), load_identity(own.identity_key)
            verify_grant(bundle, grant, identity, organisation=own.organisation, now=now)
            device, *_ = chosen_devices(own.device, torch.cuda.device_count())
            key = (bundle.digest, str(device), own.dtype)
            if key not in self._emulators:
                self._drop_other_bundles(bundle.digest)
                with open_bundle(bundle, grant, identity, organisation=own.organisation, now=now) as opened:
                    self._emulators[key] = _read_emulator(opened.files, own, device)
            yield self._emulators[key]

    def _verify(self, own: DataOwnerFile, bundle_digest: str, now: datetime) -> VerifiedBundle:
        """Verifies the manifest once in this process's life; what runs later is the copy in memory."""
        owner_key = load_verifying_key(own.owner_public_key)
        place = (own.bundle, owner_key.key_ids)
        bundle = self._verified.get(place)
        if bundle is None or bundle.digest != bundle_digest:
            bundle = verify_bundle(read_bundle(own.bundle), owner_key, now=now)
            self._verified[place] = bundle
        if bundle.digest != bundle_digest:
            raise InstructionsRefusedError("instructions.bundle", expected=bundle.digest, got=bundle_digest)
        return bundle

    def _drop_other_bundles(self, digest: str) -> None:
        self._emulators = {key: emulator for key, emulator in self._emulators.items() if key[0] == digest}


def take_part(directory: Path, payload: Payload, shelf: EmulatorShelf, *, now: datetime) -> Payload:
    """Follows the instructions of a round as far as the data owner's policy allows, and returns the signed update.

    Raises:
        MalformedStatementError, MalformedTensorsError: instructions or global adapter are malformed.
        InstructionsRefusedError: the policy does not allow them, or training diverged.
        VerificationError: request, bundle, grant or a key do not verify.
        InputError: one of the data owner's own files is missing or faulty.
        OutputError: the update cannot be stored, so it does not leave.
    """
    own = read_data_owner_file(directory)
    instructions, certificate = open_request(own, payload, Instructions, now=now)
    check_bundle(instructions, certificate)
    keep_receipts(own, payload, certificate)
    permitted = permit(own, instructions)
    if (got := digest_of(payload.tensors)) != instructions.base_sha256:
        raise InstructionsRefusedError("instructions.base", expected=instructions.base_sha256, got=got)
    signing_key = load_signing_key(own.signing_key)  # before hours of training, not after
    reporter = StepReporter(directory, instructions)
    update = _finished_update(own, permitted, payload.tensors, shelf, now=now, reporter=reporter)
    statement = UpdateStatement(
        run=instructions.run,
        round=instructions.round,
        attempt=instructions.attempt,
        nonce=instructions.nonce,
        client=own.organisation,
        base_sha256=instructions.base_sha256,
        bundle_digest=instructions.bundle_digest,
        instructions_sha256=digest_of(encode_statement(instructions)),
        update_sha256=digest_of(update.blob),
        created=now,
        client_version=importlib.metadata.version("scaleot"),
        num_examples=update.num_examples,
        train_loss=update.train_loss,
        privacy=update.privacy,
    )
    return Payload(sign(statement, signing_key), update.blob)


def _finished_update(
    own: DataOwnerFile,
    permitted: PermittedInstructions,
    base: bytes,
    shelf: EmulatorShelf,
    *,
    now: datetime,
    reporter: Reporter,
) -> LocalUpdate:
    """Returns the round's one update, which is on the disk: made now, or for an earlier attempt.

    Under a mechanism of privacy the ledger finds and keeps it.
    """
    instructions, releases = permitted.instructions, Releases(own.releases)
    if own.privacy is None and (finished := releases.find(instructions)) is not None:
        return finished
    with shelf.lend(own, instructions.bundle_digest, now=now) as emulator:
        update = _tune(emulator, own, permitted, base, now=now, reporter=reporter)
    if own.privacy is None:
        releases.keep(instructions, update)
    return update


def _tune(
    emulator: Emulator,
    own: DataOwnerFile,
    permitted: PermittedInstructions,
    base: bytes,
    *,
    now: datetime,
    reporter: Reporter,
) -> LocalUpdate:
    """Tunes the global adapter in the emulator, and leaves the emulator as it was."""
    asked = permitted.instructions
    records = read_records(own.data)
    if own.privacy is None:
        examples = readable_examples(emulator, records, max_tokens=asked.max_tokens)
    else:
        examples = private_examples(records, emulator, max_tokens=asked.max_tokens)
        if stand_ins := examples.count(STAND_IN):
            reporter.note(
                f"the emulator's tokenizer or chat template makes nothing of {stand_ins} of {len(records)} records: "
                "they count as one fixed example each, and the model owner is not told"
            )
    attached = attach_adapter(emulator.model, emulator.layout, asked.adapter)
    try:
        attached.load(decode_tensors(base, AdapterSchema.of(attached.state())))
        pad_token_id = emulator.tokenizer.pad_token_id
        if own.privacy is not None:
            from fl_clients.local_update import private_update  # the accountant takes seconds to import, every round

            return private_update(
                attached, examples, records, own, permitted, pad_token_id=pad_token_id, now=now, reporter=reporter
            )
        return _plain_update(attached, examples, own, asked, pad_token_id, reporter=reporter)
    finally:
        attached.detach()


def _plain_update(
    attached: AttachedAdapter,
    examples: Sequence[EncodedExample],
    own: DataOwnerFile,
    asked: Instructions,
    pad_token_id: int,
    *,
    reporter: Reporter,
) -> LocalUpdate:
    result = train_adapter(
        attached,
        examples,
        LocalTraining(
            asked.local_steps,
            asked.batch_size,
            asked.learning_rate,
            asked.optimizer,
            gradient_checkpointing=own.gradient_checkpointing,
        ),
        pad_token_id=pad_token_id,
        seed=batches_seed(asked.seed, asked.round, own.organisation),
        reporter=reporter,
    )
    state = attached.state()
    if has_diverged(result, state):
        raise InstructionsRefusedError("training.diverged", expected="finite values", got="NaN or infinity")
    return LocalUpdate(encode_tensors(state), result.num_examples, result.mean_loss)


def _read_emulator(files: Mapping[str, Path], own: DataOwnerFile, device: torch.device) -> Emulator:
    emulator = read_emulator(files, device=device)
    if own.dtype == "float32":
        emulator.model.float()
    return emulator


def _read_grant(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the grant {path} cannot be read: {error}") from error
