"""What fixes an adapter, in plain values: who only passes it on needs no PyTorch."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from scaleot_core.errors import ModelError


class AdapterKind(StrEnum):
    """What is trained in the adapter layers."""

    LORA = "lora"
    LAYERS = "layers"
    BOTTLENECK = "bottleneck"


@dataclass(frozen=True)
class AdapterSpec:
    """Everything that fixes an adapter's tensors: their names, shapes and starting values."""

    kind: AdapterKind
    layers: tuple[int, ...]
    """Original layer indices."""
    rank: int
    """Rank of LoRA, or width of the bottlenecks; whole layers ignore it."""
    seed: int
    """Of the random starting values: LoRA's A, a bottleneck's way down."""
    freezes_down: bool = False
    """FFA-LoRA: A stays as the seed made it and only B is trained, averaged exactly."""

    def to_json(self) -> dict[str, Any]:
        """Returns the specification as plain JSON values."""
        return {**asdict(self), "kind": self.kind.value, "layers": list(self.layers)}

    @classmethod
    def from_json(cls, value: object) -> "AdapterSpec":
        """Reads what ``to_json`` wrote; raises ``ModelError`` on anything else."""
        try:
            fields = dict(value)  # type: ignore[call-overload]
            return cls(**{**fields, "kind": AdapterKind(fields["kind"]), "layers": tuple(fields["layers"])})
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"an adapter specification is malformed: {error!r}") from error
