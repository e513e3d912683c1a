"""How alike two layers represent the same tokens: linear centred kernel alignment, summed up batch by batch.

Source: Kornblith, Norouzi, Lee, Hinton (ICML 2019, arXiv 1905.00414), the linear CKA of section 3.
"""

import torch

from scaleot_core.errors import ModelError
from scaleot_core.shapes import HiddenStates


class LinearCka:
    """Linear CKA of two representations of the same tokens: 1 where they are alike, 0 where they share nothing.

    ``||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)`` with X and Y (tokens, hidden) centred over the tokens of all
    batches. It stays the same when either is rotated, moved, or scaled by one number. The sums are float64 and of
    the hidden size squared, however many tokens are added.

    Differs from the paper in the order of work alone: the sums are centred in the end, not the activations before,
    so that one pass over the text is enough.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        self._tokens = 0
        self._x_sum, self._y_sum = (torch.zeros(hidden_size, dtype=torch.float64, device=device) for _ in range(2))
        self._xx, self._yy, self._yx = (
            torch.zeros(hidden_size, hidden_size, dtype=torch.float64, device=device) for _ in range(3)
        )

    def add(self, x: HiddenStates, y: HiddenStates) -> None:
        """Takes the two representations of one batch: the same tokens in the same order."""
        x_rows, y_rows = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        self._tokens += x_rows.shape[0]
        self._x_sum += x_rows.sum(dim=0)
        self._y_sum += y_rows.sum(dim=0)
        self._xx += x_rows.T @ x_rows
        self._yy += y_rows.T @ y_rows
        self._yx += y_rows.T @ x_rows

    def similarity(self) -> float:
        """Returns the CKA over all tokens added, in [0, 1].

        Raises:
            ModelError: a representation is the same for all tokens or is not finite, so that CKA is undefined.
        """
        x_mean, y_sum = self._x_sum / self._tokens, self._y_sum
        y_mean = y_sum / self._tokens
        shared = torch.linalg.norm(self._yx - torch.outer(y_sum, x_mean))
        x_own = torch.linalg.norm(self._xx - torch.outer(self._x_sum, x_mean))
        y_own = torch.linalg.norm(self._yy - torch.outer(y_sum, y_mean))
        if not 0 < float(x_own * y_own) < float("inf"):
            raise ModelError(f"CKA over {self._tokens} tokens is undefined: expected finite activations that differ")
        return float(shared**2 / (x_own * y_own))
