"""Names for the tensor shapes of the method; the tests check them at run time."""

from jaxtyping import Float, Int
from torch import Tensor

Matrix = Float[Tensor, "_out _in"]
"""The weight of a linear map, one row per output feature."""

HiddenStates = Float[Tensor, "batch tokens hidden"]
"""What one decoder layer hands to the next."""

TokenIds = Int[Tensor, "batch tokens"]
"""A batch of token indices, padded to one length."""

TokenBlocks = Int[Tensor, "_blocks _tokens"]
"""Text cut in blocks of one length; any number of them."""

Scores = Float[Tensor, " layers"]
"""One importance score for each original layer index."""

PartScores = Float[Tensor, " _parts"]
"""One score for each part of a matrix or layer that could be taken away."""

PartIndices = Int[Tensor, " _chosen"]
"""Indices of singular components of a matrix, or of inner channels of a feed-forward part."""

ClientWeights = Float[Tensor, " _clients"]
"""What each client counts for in an aggregate."""

TensorDict = dict[str, Tensor]
"""Tensors by name: the state of an adapter, of an emulator, of a set of harmonizers."""
