"""Sealed bundles: how an emulator travels from the model owner to data owners, through hands nobody trusts.

The model owner::

    owner = generate_signing_key()                                          # data owners pin owner.public
    sealed = seal_bundle(directory, destination, owner=owner, model=description, not_after=end)
    grant = issue_grant(sealed, owner=owner, organisation="clinic-a", recipient=recipient, not_after=end)

A data owner, each step refusing with ``VerificationError`` what it should not believe::

    identity = generate_identity()                                        # the model owner gets identity.recipient
    unverified = read_bundle(destination)                                 # bytes, not looked at
    verified = verify_bundle(unverified, owner_public_key, now=now)       # signed by the owner, and in date
    with open_bundle(verified, grant, identity, organisation="clinic-a", now=now) as opened:
        read_emulator(opened.files, device=device)                        # every block verified, then decrypted

``FORMAT.md`` beside this file specifies every byte; ``keys`` and ``key_files`` hold the keys.
Over a network: ``repository`` is what a model owner publishes, so that nobody is shown an older bundle for the newest;
``distribution`` is the wire format of a service of it, ``tls_files`` what both ends need; ``PERFORMANCE.md``: figures.
"""

from scaleot_core.bundle.grant import issue_grant, verify_grant
from scaleot_core.bundle.key_files import (
    load_data_key,
    load_identity,
    load_recipient,
    load_signing_key,
    load_verifying_key,
    save_data_key,
    save_identity,
    save_recipient,
    save_signing_key,
    save_verifying_key,
)
from scaleot_core.bundle.keys import (
    DataKey,
    Identity,
    Recipient,
    SigningKey,
    VerifyingKey,
    generate_identity,
    generate_signing_key,
)
from scaleot_core.bundle.opening import OpenedBundle, open_bundle, open_own_bundle
from scaleot_core.bundle.seal import SealedBundle, seal_bundle
from scaleot_core.bundle.verify import UnverifiedBundle, VerifiedBundle, read_bundle, verify_bundle, verify_objects

__all__ = [
    "DataKey",
    "Identity",
    "OpenedBundle",
    "Recipient",
    "SealedBundle",
    "SigningKey",
    "UnverifiedBundle",
    "VerifiedBundle",
    "VerifyingKey",
    "generate_identity",
    "generate_signing_key",
    "issue_grant",
    "load_data_key",
    "load_identity",
    "load_recipient",
    "load_signing_key",
    "load_verifying_key",
    "open_bundle",
    "open_own_bundle",
    "read_bundle",
    "save_data_key",
    "save_identity",
    "save_recipient",
    "save_signing_key",
    "save_verifying_key",
    "seal_bundle",
    "verify_bundle",
    "verify_grant",
    "verify_objects",
]
