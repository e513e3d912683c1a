"""What the work of a federation costs on this machine: stage 1, a data owner's step and plug-in evaluation.

Each case runs in a process of its own, so that its peak memory is its own. All text is random tokens.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from fl_server.benchmark_cases import CASES, COMPILABLE, COMPILED, Setting, load_benchmarked_model
from fl_server.benchmark_measure import StepCost
from fl_server.compress import Workbench, importance_settings
from scaleot_core.compression.controls import random_scores
from scaleot_core.compression.emulator import write_emulator
from scaleot_core.compression.importance import ImportanceReport
from scaleot_core.errors import InputError
from scaleot_core.models.compilation import check_compiler
from scaleot_core.models.devices import chosen_devices
from scaleot_core.models.loading import LanguageModel
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile
from scaleot_core.seeds import generator_for


def run_benchmark(
    run: RunFile,
    *,
    steps: int,
    example_tokens: tuple[int, int],
    has_random_weights: bool,
    cases: Sequence[str] = tuple(CASES),
    reporter: Reporter,
) -> dict[str, StepCost]:
    """Measures ``cases``, as ``chosen_cases`` gives them, at the run file's model, emulator and batch sizes.

    Each over ``steps`` steps. Private examples have from the first to the second number of ``example_tokens``, lengths
    evenly spread.

    With ``has_random_weights`` the model is made from its configuration alone, and the builder's public text and layer
    importance are random too: the speed is that of a real model of this shape, and nothing else is.

    Raises:
        InputError: the run file's model, or the public text that the builder reads, cannot be used, or layers are to be
            compiled and cannot be.
    """
    if any(case.endswith(COMPILED) for case in cases):
        check_compiler(chosen_devices(run.model.device, torch.cuda.device_count())[0])
    full = load_benchmarked_model(run, has_random_weights=has_random_weights, reporter=reporter)
    workbench = _invented_workbench(full, run, reporter) if has_random_weights else Workbench(full, run, reporter)
    emulator = workbench.build(run.emulator)
    with tempfile.TemporaryDirectory(prefix="scaleot-") as directory:
        write_emulator(emulator, Path(directory))
        setting = Setting(run, Path(directory), emulator.plan.adapter_layers, steps, example_tokens, has_random_weights)
        del full, workbench, emulator
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the cases are measured in processes of their own
        return {case: _measure_apart(case, setting, reporter) for case in cases}


def chosen_cases(names: Sequence[str], *, with_compiled: bool) -> tuple[str, ...]:
    """Returns the cases of these names, or without a name all; if asked to, each that can be compiled so after itself.

    Raises:
        InputError: a name is none of ``CASES``, or none can be compiled.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise InputError(f"--case {unknown[0]}: expected one of: {'; '.join(CASES)}")
    chosen = tuple(case for case in CASES if case in names or not names)
    if not with_compiled:
        return chosen
    if not COMPILABLE.intersection(chosen):
        raise InputError(f"--compile: none of the cases asked for can be compiled; {'; '.join(sorted(COMPILABLE))} can")
    return tuple(itertools.chain.from_iterable(_with_compiled(case) for case in chosen))


def _with_compiled(case: str) -> tuple[str, ...]:
    return (case, case + COMPILED) if case in COMPILABLE else (case,)


def example_lengths(text: str) -> tuple[int, int]:
    """Reads ``"64"``, or ``"20-60"``, as the shortest and the longest private example.

    Raises:
        InputError: it is neither, or below two tokens.
    """
    shortest, dash, longest = text.partition("-")
    if not (shortest.isdecimal() and (longest.isdecimal() or not dash)):
        raise InputError(f"--example-tokens {text}: expected a number of tokens, as 64, or a range, as 20-60")
    lengths = int(shortest), int(longest or shortest)
    if not 2 <= lengths[0] <= lengths[1]:
        raise InputError(f"--example-tokens {text}: expected at least 2 tokens, and the shorter length first")
    return lengths


def _invented_workbench(full: LanguageModel, run: RunFile, reporter: Reporter) -> Workbench:
    layers, hidden, rank = full.layout.num_layers, full.layout.hidden_size, run.importance.harmonizer_rank
    shape = (run.emulator.public_blocks, run.importance.block_tokens)
    blocks = torch.randint(full.model.config.vocab_size, shape, generator=generator_for(run.seed, "benchmark"))
    downs = {f"{index}.down.weight": torch.zeros(rank, hidden) for index in range(layers)}
    ups = {f"{index}.up.weight": torch.zeros(hidden, rank) for index in range(layers)}
    scores = random_scores(layers, run.seed)
    importance = ImportanceReport(scores, {**downs, **ups}, importance_settings(run.importance), (), ())
    return Workbench(full, run, reporter, blocks=blocks, importance=importance)


def _measure_apart(case: str, setting: Setting, reporter: Reporter) -> StepCost:
    reporter.note(f"measuring: {case}")
    command = [sys.executable, "-m", "fl_server.benchmark_cases", case]
    finished = subprocess.run(  # noqa: S603 - our own module
        command, input=setting.to_text(), stdout=subprocess.PIPE, check=True, text=True
    )
    return StepCost(**json.loads(finished.stdout))
