import shutil
from pathlib import Path

import pytest

from fl_clients.join import PARTS
from fl_clients.join_commands import PartName
from fl_clients.membership import read_membership
from scaleot_core.errors import InputError
from tests.support.deployments import Deployed


@pytest.fixture
def home(deployed: Deployed, tmp_path: Path) -> Path:
    return shutil.copytree(deployed.data_owner_homes[0], tmp_path / "data-owner-0")


def test_a_home_knows_where_its_federation_is(home: Path, deployed: Deployed) -> None:
    membership = read_membership(home)
    assert str(membership.fleet) == deployed.run.serve.fleet
    assert str(membership.distribution) == deployed.run.serve.distribution
    assert membership.runtime.is_loopback


def test_a_path_that_flower_would_misread_is_refused(home: Path) -> None:
    strange = home.rename(home.with_name('data"owner'))
    with pytest.raises(InputError, match="without quotes"):
        read_membership(strange)


@pytest.mark.parametrize("key", ["bundle", "grant", "identity_key", "owner_public_key"])
def test_a_place_that_admission_and_fetch_do_not_look_at_is_refused(home: Path, key: str) -> None:
    path = home / "data-owner.toml"
    path.write_text(f'{key} = "elsewhere"\n' + path.read_text())
    with pytest.raises(InputError, match=f"{key} leads to .*elsewhere.*leave the key out"):
        read_membership(home)


def test_the_parts_of_the_command_line_are_those_that_are_supervised() -> None:
    assert set(PartName.__args__) == set(PARTS)  # type: ignore[attr-defined]
