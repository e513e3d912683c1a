"""Memory that ran out while something was computed: how it is told from other errors, and what can be done."""

_TEXTS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What PyTorch says of it: of a GPU, in more than one kind of ``RuntimeError``, and of the machine itself."""

_REMEDIES = (
    "take smaller batches (batch_size of [federation], [importance], and full_fine_tuning_batch_size), shorter records "
    '(federation.max_tokens), gradient_checkpointing = true, model.dtype = "bfloat16", or a machine with more memory'
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says so: Python's own, or PyTorch's, which is not imported for it."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in _TEXTS)
    return isinstance(error, MemoryError)


def out_of_memory_message(error: BaseException) -> str:
    """Returns a line for people: what the library said, and what needs less."""
    said = str(error).partition("\n")[0].strip() or "Python could not get any more"
    return f"out of memory: {said}: {_REMEDIES}"
