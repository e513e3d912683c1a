"""Events of the two laws that every accountant knows, by the least that names them."""

from scaleot_core.privacy.events import PrivacyEvent


def gaussian(noise_multiplier: float, sample_rate: float = 1.0, count: int = 1) -> PrivacyEvent:
    return PrivacyEvent("gaussian", {"noise_multiplier": noise_multiplier}, sample_rate, count)


def laplace(scale: float, sample_rate: float = 1.0, count: int = 1, dimension: float = 1.0) -> PrivacyEvent:
    return PrivacyEvent("laplace", {"scale": scale, "dimension": dimension}, sample_rate, count)
