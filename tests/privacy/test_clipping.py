import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleot_core.privacy.clipping import clip_tensors, clip_to_cells, clip_vectors, clipped_sum
from scaleot_core.privacy.noise_ranges import Norm
from tests.support.private_tasks import flat

numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


def norm_of(tensors: dict[str, torch.Tensor]) -> float:
    return float(flat(tensors).norm())


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6), st.floats(1e-3, 1e3))
def test_no_example_adds_more_than_the_bound_whatever_its_numbers(values: list[float], max_norm: float) -> None:
    row = torch.tensor(values, dtype=torch.float32)
    total = clipped_sum({"a": row[:2].view(1, 2), "b": row[2:].view(1, 2, 2)}, max_norm)
    assert norm_of(total) <= max_norm * (1 + 1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6), st.floats(1e-3, 1e3), st.sampled_from(["L1", "L2"]))
def test_no_vector_is_longer_than_the_bound_whatever_its_numbers(values: list[float], bound: float, norm: str) -> None:
    clipped = clip_vectors(np.array([values], dtype=np.float64), bound, norm)  # type: ignore[arg-type]
    assert np.linalg.norm(clipped[0], ord=int(norm[1])) <= bound * (1 + 1e-12)


def test_a_gradient_within_the_bound_is_not_changed_and_one_beyond_keeps_its_direction() -> None:
    small, large = torch.tensor([[0.3, 0.4]]), torch.tensor([[30.0, 40.0]])
    assert clipped_sum({"g": small}, 1.0)["g"].tolist() == small[0].double().tolist()
    torch.testing.assert_close(clipped_sum({"g": large}, 1.0)["g"], torch.tensor([0.6, 0.8], dtype=torch.float64))
    assert clip_vectors(np.array([[0.3, 0.4], [30.0, 40.0]]), 1.0).tolist()[0] == [0.3, 0.4]
    np.testing.assert_allclose(clip_vectors(np.array([[30.0, 40.0]]), 1.0), [[0.6, 0.8]])
    np.testing.assert_allclose(clip_vectors(np.array([[30.0, -10.0]]), 1.0, "L1"), [[0.75, -0.25]])


def test_the_norm_is_joint_over_all_tensors() -> None:
    total = clipped_sum({"a": torch.tensor([[3.0]]), "b": torch.tensor([[4.0]])}, 1.0)
    assert (float(total["a"]), float(total["b"])) == pytest.approx((0.6, 0.8))


def test_a_zero_gradient_stays_zero() -> None:
    assert clipped_sum({"g": torch.zeros(2, 3)}, 1.0)["g"].tolist() == [0.0, 0.0, 0.0]
    assert clip_vectors(np.zeros((1, 3)), 1.0).tolist() == [[0.0, 0.0, 0.0]]


def test_norms_neither_overflow_nor_vanish_in_float32() -> None:
    assert norm_of(clipped_sum({"g": torch.full((1, 4), 3e38)}, 1.0)) == pytest.approx(1.0, rel=1e-6)
    tiny = torch.full((1, 4), 1e-30)
    assert clipped_sum({"g": tiny}, 1.0)["g"].tolist() == tiny[0].double().tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_example_that_is_not_finite_becomes_one_fixed_vector_of_the_full_norm(bad: float) -> None:
    for other in (0.0, 5.0):
        total = clipped_sum({"a": torch.tensor([[bad, other]]), "b": torch.tensor([[other, 1.0]])}, 2.0)
        assert flat(total).tolist() == [1.0] * 4
        assert clip_vectors(np.array([[bad, other, 1.0, 2.0]]), 2.0).tolist() == [[1.0] * 4]
        assert clip_vectors(np.array([[bad, other, 1.0, 2.0]]), 2.0, "L1").tolist() == [[0.5] * 4]


def test_an_example_that_is_not_finite_does_not_touch_the_others() -> None:
    good = torch.tensor([[0.3, 0.4]])
    both = clipped_sum({"g": torch.cat([good, torch.tensor([[math.nan, 1.0]])])}, 1.0)["g"]
    torch.testing.assert_close(both, good[0].double() + 1 / math.sqrt(2))


def test_an_update_is_clipped_as_one_vector() -> None:
    update = {"a": torch.tensor([3.0, 0.0], dtype=torch.float64), "b": torch.tensor([[4.0]], dtype=torch.float64)}
    assert norm_of(clip_tensors(update, 0.5)) == pytest.approx(0.5, rel=1e-12)
    assert clip_tensors(update, 9.0)["b"].tolist() == [[4.0]]


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("bound", [5e-324, 2.5e-323, 1e-310, 1e-9, 1.0, 1e9, 1e300])
def test_cells_keep_the_bound_to_the_last_one_at_every_bound_that_there_is(norm: Norm, bound: float) -> None:
    generator = np.random.default_rng(0)
    rows = [np.full(256, 0.504), generator.normal(size=256), 1e-200 * generator.normal(size=256), np.full(256, bound)]
    rows += [1e200 * generator.normal(size=256), np.full(256, math.nan), np.array([math.inf, *[1.0] * 255])]
    cells = clip_to_cells(np.array(rows), bound, norm, 1 << 16)
    order = int(norm[1])
    assert all(sum(abs(cell) ** order for cell in row) <= (1 << 16) ** order for row in cells.tolist())


def test_cells_of_a_vector_within_the_bound_are_its_share_of_it_rounded_towards_zero() -> None:
    assert clip_to_cells(np.array([[0.6, -0.3]]), 1.0, "L2", 10).tolist() == [[6, -3]]
    assert clip_to_cells(np.array([[0.69, -0.69]]), 1.0, "L2", 10).tolist() == [[6, -6]]
    assert clip_to_cells(np.array([[30.0, 40.0], [0.0, 0.0]]), 5.0, "L2", 1000).tolist() == [[600, 800], [0, 0]]
    assert clip_to_cells(np.array([[math.nan, 1.0]]), 1.0, "L1", 10).tolist() == [[5, 5]]
    assert clip_to_cells(np.zeros((0, 3)), 1.0, "L2", 10).shape == (0, 3)


@pytest.mark.parametrize(("norm", "order"), [("L1", 1), ("L2", 2)])
def test_what_stands_for_a_vector_that_is_not_finite_keeps_the_bound_in_any_dimension(norm: Norm, order: int) -> None:
    for size in (2, 3, 5, 7, 11):
        (cells,) = clip_to_cells(np.array([[math.nan, *[1.0] * (size - 1)]]), 1.0, norm, 65536).tolist()
        assert sum(abs(cell) ** order for cell in cells) <= 65536**order
        assert min(cells) > 0.99 * 65536 / size ** (1 / order)
