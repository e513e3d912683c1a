import pytest
import torch

from scaleot_core.out_of_memory import is_out_of_memory, out_of_memory_message


def test_the_machine_s_own_refusal_is_seen() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert "allocate 4611686018427387904 bytes" in out_of_memory_message(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    ],
    ids=["python", "cached", "driver", "cublas", "cusolver"],
)
def test_every_way_in_which_memory_runs_out_is_one_line_that_says_what_needs_less(error: Exception) -> None:
    assert is_out_of_memory(error)
    message = out_of_memory_message(error)
    assert message.startswith("there is not enough memory") and "\n" not in message
    assert "federation.max_tokens" in message


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
