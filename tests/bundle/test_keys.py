import copy
import pickle
from pathlib import Path
from pprint import pformat

import pytest

from scaleot_core.bundle import generate_identity, generate_signing_key
from scaleot_core.bundle.keys import generate_data_key
from tests.support.bundles import scene


def test_no_representation_shows_a_secret(tmp_path: Path) -> None:
    sealed = scene(tmp_path).sealed
    secret = sealed.data_key.secret
    private = (sealed, sealed.data_key, generate_signing_key(), generate_identity())
    for shown in (str(private), repr(private), pformat(private), f"{private}"):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
        assert "Private" not in shown.replace("SigningKey object", "")


@pytest.mark.parametrize("generate", [generate_signing_key, generate_identity, generate_data_key])
def test_private_keys_cannot_be_pickled_into_a_message(generate: object) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(generate())  # type: ignore[operator]


def test_two_generated_keys_differ() -> None:
    assert generate_signing_key().public != generate_signing_key().public
    assert generate_identity().recipient != generate_identity().recipient
    assert generate_data_key().secret != generate_data_key().secret
    assert len(generate_data_key().secret) == 32


def test_the_two_halves_of_an_owner_key_have_different_ids() -> None:
    owner = generate_signing_key().public
    assert len(set(owner.key_ids)) == 2
    assert owner.key_ids == copy.copy(owner).key_ids
