"""What the server believes of an update that should be private: its noise is named, its scalars are bounded."""

from dataclasses import replace

import pytest
import torch

from scaleot_core.errors import Reason, UpdateRejectedError
from scaleot_core.federation.messages import PrivateRelease
from scaleot_core.federation.validation import SCALARS, ExpectedScalars, encode_tensors
from tests.support.updates import expected_update, random_state, update_of, validated

NOISE = PrivateRelease(
    noise="gaussian", parameters={"noise_multiplier": 1.5}, sample_rate=0.1, count=20, ledger_head="c" * 64
)
PRIVATE = replace(expected_update(), is_private=True)
SCALAR = replace(PRIVATE, scalars=ExpectedScalars(steps=3, directions=2, unit_norm=0.5))
ADAPTER = encode_tensors(random_state(1))


def scalars(values: torch.Tensor) -> bytes:
    return encode_tensors({SCALARS: values})


HONEST = torch.tensor([[1, -2], [3, 4], [0, 5]], dtype=torch.int32)


def test_a_private_update_carries_its_noise_and_no_loss() -> None:
    update = validated(update_of(PRIVATE, ADAPTER, train_loss=None, privacy=NOISE), PRIVATE)
    assert update.privacy == NOISE and update.train_loss is None


@pytest.mark.parametrize("fields", [{}, {"privacy": NOISE}, {"train_loss": None}])
def test_an_update_without_noise_or_with_a_loss_is_refused_where_privacy_was_asked(fields: dict[str, object]) -> None:
    with pytest.raises(UpdateRejectedError) as rejected:
        validated(update_of(PRIVATE, ADAPTER, **fields), PRIVATE)
    assert rejected.value.reason is Reason.PRIVACY


def test_noise_that_nobody_asked_for_is_refused() -> None:
    plain = expected_update()
    with pytest.raises(UpdateRejectedError) as rejected:
        validated(update_of(plain, ADAPTER, train_loss=None, privacy=NOISE), plain)
    assert rejected.value.reason is Reason.PRIVACY


def test_scalars_come_as_they_were_sent() -> None:
    update = validated(update_of(SCALAR, scalars(HONEST), train_loss=None, privacy=NOISE), SCALAR)
    assert torch.equal(update.state[SCALARS], HONEST)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (scalars(HONEST[:2]), Reason.SCHEMA),
        (scalars(HONEST.T), Reason.SCHEMA),
        (scalars(HONEST.float()), Reason.SCHEMA),
        (encode_tensors({"scalar": HONEST}), Reason.SCHEMA),
        (ADAPTER, Reason.SCHEMA),
        (b"", Reason.SIZE),
        (scalars(HONEST * 1_000_000), Reason.NORM),
    ],
)
def test_scalars_of_another_shape_type_name_or_size_are_refused(blob: bytes, reason: Reason) -> None:
    with pytest.raises(UpdateRejectedError) as rejected:
        validated(update_of(SCALAR, blob, train_loss=None, privacy=NOISE), SCALAR)
    assert rejected.value.reason is reason


def test_the_norm_of_scalars_is_bounded_by_how_far_they_move_the_adapter() -> None:
    norm = 0.5 * float(HONEST.double().norm())
    update = update_of(SCALAR, scalars(HONEST), train_loss=None, privacy=NOISE)
    validated(update, replace(SCALAR, max_update_norm=norm * 1.001))
    with pytest.raises(UpdateRejectedError) as rejected:
        validated(update, replace(SCALAR, max_update_norm=norm * 0.999))
    assert rejected.value.reason is Reason.NORM
