"""An emulator in figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EmulatorReport:
    """What an emulator weighs, and what of the full model it gives away."""

    parameters: int
    size_bytes: int
    size_share: float
    """Parameters of the emulator over those of the full model."""
    verbatim_share: float
    """Share of the full model's parameters that stand unchanged in the emulator."""
    trained_share: float
    """Parameters of the harmonizers in it over those of the full model."""
