"""What each result of a comparison depends on: by this it is stored, and found again.

What stands in no result's inputs must change no result. Too much costs a computation, too little gives a wrong figure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scaleot_core.compression.importance_store import ALGORITHM
from scaleot_core.run_file import RunFile

Inputs = dict[str, Any]


@dataclass(frozen=True)
class ResultInputs:
    """Names the inputs of the results on one full model; ``emulator`` is everywhere an emulator's digest."""

    model: str
    """The full model's digest."""
    tokenizer: str
    """The digest of tokenizer and chat template, which the model's own leaves out."""
    device: str
    digest_of: Callable[[str], str]
    """Gives the digest of an embedded asset or a file."""

    def emulator(self, run: RunFile) -> Inputs:
        """Names what the emulator and its description depend on."""
        settings = run.importance.model_dump(exclude={"gradient_checkpointing"})  # changes no result
        importance = {**settings, "text": self.digest_of(run.importance.text), "algorithm": ALGORITHM}
        return {**self._model(run), "importance": importance, "emulator": run.emulator.model_dump()}

    def zero_shot(self, run: RunFile) -> Inputs:
        """Names what the untouched full model's figures depend on."""
        test = self.digest_of(run.data.test) if run.data.test else f"of {self.digest_of(run.data.train)}"
        return {**self._model(run), "test": test, "examples": run.evaluation.examples}

    def emulator_zero_shot(self, run: RunFile, emulator: str) -> Inputs:
        """Names what the untuned emulator's figures depend on."""
        return {**self.zero_shot(run), "emulator": emulator}

    def full_fine_tuning(self, run: RunFile) -> Inputs:
        """Names what the reference's figures depend on."""
        return {**self.zero_shot(run), **self._tuning(run), "evaluation": run.evaluation.model_dump()}

    def tuned(self, run: RunFile, emulator: str) -> Inputs:
        """Names what the rounds depend on, and the figures of tuned emulator and plug-in."""
        inputs = {**self.zero_shot(run), **self._tuning(run), "emulator": emulator}
        return inputs if run.privacy.mechanism == "none" else {**inputs, "privacy": run.privacy.model_dump()}

    def attacks(self, run: RunFile, emulator: str) -> Inputs:
        """Names what the attacks read, not how the adapter is tuned; floors alone are the same for all emulators."""
        floors = {**self.zero_shot(run), "seed": run.seed}
        if not run.model_privacy.strong_emulator_steps and not run.model_privacy.healing_steps:
            return floors
        tuning = self._tuning(run)
        del tuning["adapter"], tuning["validation"]
        sizes = {"clients", "partition", "partition_alpha", "batch_size", "max_tokens"}
        return {
            **floors,
            **tuning,
            "federation": run.federation.model_dump(include=sizes),
            "text": self.digest_of(run.importance.text),
            "importance": run.importance.model_dump(include={"batch_size", "block_tokens"}),
            "attacks": run.model_privacy.model_dump(exclude={"disclosure_record"}),
            "emulator": emulator,
        }

    def _model(self, run: RunFile) -> Inputs:
        compiled = {"compiled": True} if run.model.compiled else {}
        return {
            **compiled,
            "model": self.model,
            "tokenizer": self.tokenizer,
            "dtype": run.model.dtype,
            "device": self.device,
        }

    def _tuning(self, run: RunFile) -> Inputs:
        few_shot = {"examples_per_class": run.data.examples_per_class} if run.data.examples_per_class else {}
        return {
            **few_shot,
            "seed": run.seed,
            "train": self.digest_of(run.data.train),
            "validation": self.digest_of(run.data.validation) if run.data.validation else None,
            "adapter": run.adapter.model_dump(),
            "federation": run.federation.model_dump(exclude={"gradient_checkpointing"}),  # changes no result
        }
