"""Settings of Dynamic LayerReplace that a tiny model learns with in a moment; a test names what it cares about."""

import dataclasses
from typing import Any

from scaleot_core.compression.importance import ImportanceSettings

_SETTINGS = ImportanceSettings(
    steps=8,
    candidates=3,
    harmonizer_rank=4,
    batch_size=2,
    harmonizer_learning_rate=0.01,
    score_learning_rate=10.0,
    score_every_steps=2,
    group_size=4,
    regroup="random",
    reward="raw",
    harmonizer_start="identity",
    closed_form_blocks=4,
    hidden_state_weight=0.0,
    seed=3,
)


def importance_settings(**changes: Any) -> ImportanceSettings:
    return dataclasses.replace(_SETTINGS, **changes)
