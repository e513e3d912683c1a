from itertools import product
from typing import get_args

import pytest

from fl_server.compress import Workbench
from fl_server.feasibility import check_layers, reads_public_text
from scaleot_core.config import read_run_file
from scaleot_core.errors import RunFileError
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import SilentReporter
from scaleot_core.run_file import EmulatorSection, RunFile
from scaleot_core.shapes import TokenBlocks
from tests.support.tiny_models import tiny_language_model


class TextReadError(Exception):
    """A builder asked for the public text."""


class TextlessWorkbench(Workbench):
    def blocks(self) -> TokenBlocks:
        raise TextReadError


def reads_while_built(full: LanguageModel, run: RunFile) -> bool:
    try:
        TextlessWorkbench(full, run, SilentReporter()).build(run.emulator)
    except TextReadError:
        return True
    return False


def test_the_emulators_that_are_said_to_read_the_public_text_are_those_that_do() -> None:
    full = tiny_language_model("llama")
    fields = EmulatorSection.model_fields
    builders, rules, scores = (
        get_args(fields[name].annotation) for name in ("builder", "adapter_rule", "layer_scores")
    )
    said = {}
    for builder, rule, score, replaced, removed in product(builders, rules, scores, (0.0, 0.5, 1.0), (0.0, 0.5)):
        asked = {"builder": builder, "adapter_rule": rule, "layer_scores": score, "replaced_layer_share": replaced}
        asked |= {"removed_rank_share": removed, "num_adapter_layers": 2}
        settings = [f"emulator.{name}={value}" for name, value in asked.items()]
        run = read_run_file(None, [*settings, "model_privacy.healing_steps=[]"])
        said[builder, rule, score, replaced, removed] = reads_public_text(run)
        assert reads_public_text(run) is reads_while_built(full, run), asked
    textless = {(builder, score) for (builder, rule, score, *_), reads in said.items() if rule == "ends" and not reads}
    assert textless == {*product(("uniform", "gradot", "distilled"), scores), ("importance_drop", "random")}


@pytest.mark.parametrize(("steps", "reads"), [("[]", False), ("[0]", True), ("[2, 4]", True)])
def test_a_healing_attack_reads_the_public_text(steps: str, reads: bool) -> None:
    run = read_run_file(None, ["emulator.builder=uniform", f"model_privacy.healing_steps={steps}"])
    assert reads_public_text(run) is reads


def test_more_adapter_layers_than_layers_are_refused() -> None:
    run = read_run_file(None, ["emulator.builder=uniform"])
    check_layers([run], 4)
    with pytest.raises(RunFileError, match=r"num_adapter_layers: got 4, expected at most 3"):
        check_layers([run], 3)
