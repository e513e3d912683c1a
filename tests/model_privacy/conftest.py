import pytest

from tests.model_privacy.taught import Taught, teach


@pytest.fixture(scope="session")
def taught() -> Taught:
    """One tiny model that has learnt something, for every test that asks what an attack gets back of it."""
    return teach()
