"""What anyone reaches without the full model: the marks that a figure of model privacy is read from."""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM

from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.models.loading import LanguageModel
from scaleot_core.models.placement import place_like
from scaleot_core.progress import Reporter
from scaleot_core.seeds import derive_seed
from scaleot_core.training.data import ChoiceRecord, Record


@dataclass(frozen=True)
class MajorityFloor:
    """Always the same answer, the most frequent one."""

    label: int
    """Its place among the choices."""
    accuracy: float
    """From 0 to 1, on the very records that were counted: no model that ignores the context does better."""
    examples: int


@dataclass(frozen=True)
class Floors:
    """What the task gives away by itself, and what the architecture gives with no weight of the full model."""

    majority: MajorityFloor | None
    """None for records without choices."""
    random_initialisation: Metrics

    @property
    def accuracy(self) -> float | None:
        """The higher of the two accuracies; none where the task has none."""
        known = [self.majority.accuracy] if self.majority else []
        if self.random_initialisation.accuracy is not None:
            known.append(self.random_initialisation.accuracy)
        return max(known, default=None)

    @property
    def loss(self) -> float:
        """The loss of random initialisation, in nats per target token."""
        return self.random_initialisation.loss


def majority_floor(records: Sequence[Record]) -> MajorityFloor | None:
    """Returns how often the most frequent label is right, a tie going to the lower one.

    None unless all records are choices with at least two labels among them: where the right answer always stands
    at one place (SciQ), the place is no answer that anybody could give.
    """
    labels = Counter(record.label for record in records if isinstance(record, ChoiceRecord))
    if len(labels) < 2 or labels.total() < len(records):
        return None
    label, count = min(labels.items(), key=lambda item: (-item[1], item[0]))
    return MajorityFloor(label, count / len(records), len(records))


def random_initialisation(full: LanguageModel, seed: int) -> LanguageModel:
    """Returns a model of the full one's architecture, type and device whose weights are drawn afresh.

    The weights are those of the architecture's own initialisation, drawn on the CPU; no tensor of the full model is
    in it. Memory holds a second full model meanwhile.
    """
    config = copy.deepcopy(full.model.config)  # from_config writes to it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "random initialisation"))
        model = AutoModelForCausalLM.from_config(config, dtype=full.model.dtype)
    return replace(full, model=place_like(model, full.model).eval().requires_grad_(False), digest="")


def measure_floors(full: LanguageModel, records: Sequence[Record], *, seed: int, reporter: Reporter) -> Floors:
    """Returns both floors on held-out records of one kind.

    Raises:
        DataError: as ``evaluate`` does.
    """
    fresh = random_initialisation(full, seed)
    return Floors(majority_floor(records), evaluate(fresh.model, fresh.tokenizer, records, reporter=reporter))
