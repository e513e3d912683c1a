import pytest
import torch

from scaleot_core.compression.cka import LinearCka
from scaleot_core.errors import ModelError

CPU = torch.device("cpu")


def cka(x: torch.Tensor, y: torch.Tensor, *, batch_size: int = 3) -> float:
    similarity = LinearCka(x.shape[-1], CPU)
    for x_batch, y_batch in zip(x.split(batch_size), y.split(batch_size), strict=True):
        similarity.add(x_batch, y_batch)
    return similarity.similarity()


def cka_by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the Gram matrices K = X X^T, L = Y Y^T and H = I - 1 1^T / n."""
    x_rows, y_rows = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    n = x_rows.shape[0]
    centring = torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)
    k, m = x_rows @ x_rows.T, y_rows @ y_rows.T

    def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ centring @ b @ centring).trace() / (n - 1) ** 2

    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def representations(offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, 6, generator=generator) + offset
    y = x @ torch.randn(6, 6, generator=generator) + torch.randn(7, 5, 6, generator=generator) - 3 * offset
    return x, y


@pytest.mark.parametrize("offset", [0.0, 2.0, 1e3])
def test_equals_the_definition_with_gram_and_centring_matrices(offset: float) -> None:
    x, y = representations(offset)
    assert cka(x, y) == pytest.approx(cka_by_definition(x, y), rel=1e-7)
    assert 0.05 < cka(x, y) < 0.95


def test_does_not_depend_on_the_batches() -> None:
    x, y = representations(1.0)
    assert cka(x, y, batch_size=1) == pytest.approx(cka(x, y, batch_size=7), rel=1e-12)


def test_is_one_for_a_rotated_scaled_and_moved_copy() -> None:
    x, _ = representations()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    assert cka(x, 4 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)


def test_is_zero_for_representations_without_correlation() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])
    y = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    assert cka(x, y) == pytest.approx(0, abs=1e-12)


def test_takes_half_precision_without_losing_the_sums() -> None:
    x, y = (values.bfloat16() for values in representations(30.0))
    assert cka(x, y) == pytest.approx(cka_by_definition(x, y), rel=1e-7)


@pytest.mark.parametrize("fault", [0.0, float("nan"), float("inf")])
def test_is_undefined_for_activations_that_are_all_alike_or_not_finite(fault: float) -> None:
    x, _ = representations()
    with pytest.raises(ModelError, match="35 tokens is undefined"):
        cka(x, torch.full_like(x, fault))
