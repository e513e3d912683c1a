"""The loss of each example alone, which no other example of its batch can change."""

from jaxtyping import Float
from torch import Tensor, nn

from scaleot_core.models.attention import attention_for_training
from scaleot_core.privacy.physical_batches import PhysicalBatch
from scaleot_core.training.data import IGNORED_LABEL

ExampleLosses = Float[Tensor, " rows"]
"""One loss for each row of a batch."""


def example_losses(model: nn.Module, batch: PhysicalBatch) -> ExampleLosses:
    """Returns the mean cross-entropy over each example's own target tokens, in float32; zero for an empty row.

    Never the mean over the tokens of the batch, which transformers returns as ``loss``: there one long example
    shrinks the gradients of all others, and the sum of clipped gradients moves by more than the clipping norm.
    """
    with attention_for_training(model, batch.input_ids):
        logits = model(input_ids=batch.input_ids, logits_to_keep=batch.positions, use_cache=False).logits
    labels = batch.labels
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    num_targets = (labels != IGNORED_LABEL).sum(dim=1)
    means: Tensor = losses.view(labels.shape).sum(dim=1) / num_targets.clamp(min=1)
    return means
