"""Memory that ran out while something was computed: how it is told from other errors, and what can be done."""

_TEXTS = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""What PyTorch says of it, in several kinds of ``RuntimeError``: of a GPU, of the machine, of a GPU's libraries."""

_REMEDIES = (
    "smaller batches (batch_size in [federation] and [importance], full_fine_tuning_batch_size in [evaluation]), "
    "shorter text (federation.max_tokens, importance.block_tokens), "
    "gradient_checkpointing = true in [federation] and [importance]"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether memory ran out, the machine's or a GPU's; PyTorch is not imported for it."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in _TEXTS)
    return isinstance(error, MemoryError)


def out_of_memory_message(error: BaseException) -> str:
    """Returns a line for people: what the library said, and which settings of a run file need less."""
    said = str(error).partition("\n")[0].strip()
    return (
        f"there is not enough memory{f' ({said})' if said else ''}. These need less: {_REMEDIES}; or a larger machine"
    )
