"""Seeds for each part of a run, derived from the run's one seed by name, so that no two parts share a stream.

Never used for privacy noise or keys: those draw on the operating system.
"""

import hashlib

import torch


def derive_seed(seed: int, *labels: str | int) -> int:
    """Returns a 53-bit seed (exact in JSON) for the part of a run that ``labels`` name: SHA-256 of seed and labels."""
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11


def batches_seed(federation_seed: int, round_number: int, organisation: str) -> int:
    """Returns the seed of a client's batches in a round, from the seed that all clients are told."""
    return derive_seed(federation_seed, "local", round_number, organisation)


def generator_for(seed: int, *labels: str | int) -> torch.Generator:
    """Returns a CPU generator seeded for the part of a run that ``labels`` name."""
    return torch.Generator().manual_seed(derive_seed(seed, *labels))
