import pytest
import torch

from scaleot_core.models.logits import no_logits
from tests.support.tiny_models import FAMILY_CONFIGS, tiny_model


@pytest.mark.parametrize("model_type", FAMILY_CONFIGS)
def test_every_family_runs_a_pass_without_logits(model_type: str) -> None:
    token_ids = torch.arange(12).reshape(3, 4)
    assert tiny_model(model_type)(input_ids=token_ids, logits_to_keep=no_logits()).logits.numel() == 0
