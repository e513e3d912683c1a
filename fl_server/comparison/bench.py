"""Computes a comparison's points: models loaded once, emulators shared by neighbours, results found again."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from fl_server.checkpoint import best_round
from fl_server.comparison.inputs import ResultInputs
from fl_server.comparison.points import Point, emulator_key
from fl_server.comparison.store import Origin, ResultStore
from fl_server.comparison.tuning import tune_in_rounds
from fl_server.compress import Workbench, asset_or_path, compiled_as_asked, needs_importance
from fl_server.data import Data, read_data
from fl_server.feasibility import reads_public_text
from fl_server.model_privacy import Target, attack_emulator
from fl_server.privacy import planned_budget
from fl_server.reference import adapter_spec, full_fine_tuned
from scaleot_core.adapters.plug_in import plugged_in
from scaleot_core.compression.emulator import Emulator, describe_emulator
from scaleot_core.errors import RoundFailedError
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.models.loading import LanguageModel, tokenizer_files
from scaleot_core.progress import Reporter
from scaleot_core.run_file import RunFile
from scaleot_core.training.data import Record

Result = dict[str, Any]


class Bench:
    """One full model on which points are run; at most one emulator is in memory."""

    def __init__(self, full: LanguageModel, store: ResultStore, reporter: Reporter) -> None:
        self._full, self._store, self._reporter = full, store, reporter
        self._emulator: tuple[str, Emulator] | None = None
        self._workbenches: dict[str, Workbench] = {}
        self._file_digests: dict[str, str] = {}
        self._inputs = ResultInputs(
            full.digest, _digest_of_tokenizer(full), full.model.device.type, digest_of=self._digest_of
        )
        self._digests: dict[str, str] = {}
        """Of the emulators that results stand for, by their key."""

    def run(self, point: Point) -> Result:
        """Returns the results of a point, all of them found again or computed now.

        ``failed`` says why there are none where every client's training diverged.

        Raises:
            InputError: model, text or data cannot be used.
        """
        run = point.run
        data, inputs = cache(lambda: read_data(run, self._reporter)), self._inputs
        origins: dict[Origin, None] = {}

        def found(what: str, key: Mapping[str, Any], compute: Callable[[], Result]) -> Result:
            stored = self._store.get_or_compute(what, key, compute)
            origins[stored.origin] = None
            return stored.values

        emulator_facts = found("emulator", inputs.emulator(run), lambda: self._describe(run))
        emulator = emulator_facts["digest"]
        self._digests[emulator_key(run)] = emulator
        measured = {
            "zero_shot": found("zero-shot", inputs.zero_shot(run), lambda: self._zero_shot(run, data())),
            "emulator_zero_shot": found(
                "emulator-zero-shot",
                inputs.emulator_zero_shot(run, emulator),
                lambda: _figures(self._measure(run, self._emulator_of(run), data().test)),
            ),
        }
        if run.evaluation.full_fine_tuning:
            measured["full_fine_tuning"] = found(
                "full-fine-tuning", inputs.full_fine_tuning(run), lambda: self._reference(run, data())
            )
        tuned = found("tuned", inputs.tuned(run, emulator), lambda: self._tune(run, data()))
        attacks = found(
            "attacks",
            inputs.attacks(run, emulator),
            lambda: self._attack(run, data(), Metrics(**measured["zero_shot"])),
        )
        return {
            "labels": dict(point.labels),
            "seed": point.seed,
            "results": {**measured, **tuned.get("results", {})},
            "attacks": attacks,
            "emulator": emulator_facts,
            "rounds": tuned.get("rounds", []),
            "chosen_round": tuned.get("chosen_round"),
            "tuning_seconds": tuned["seconds"],
            "failed": tuned.get("failed"),
            "origins": [vars(origin) for origin in origins],
            **({} if run.privacy.mechanism == "none" else {"budgets": [planned_budget(run, data().partitions)]}),
        }

    def _zero_shot(self, run: RunFile, data: Data) -> Result:
        return _figures(self._measure(run, self._full, data.test))

    def _describe(self, run: RunFile) -> Result:
        """Builds the emulator, timed; what was learnt for several of them counts as it was when it was learnt."""
        workbench = self._workbench_of(run)
        importance = workbench.importance() if needs_importance(run.emulator) else None
        if reads_public_text(run):
            workbench.blocks()
        scores_seconds = workbench.scores_seconds(run.emulator)
        self._emulator = None  # frees the last one first
        started = time.monotonic()
        emulator = workbench.build(run.emulator)
        seconds = time.monotonic() - started + scores_seconds
        self._emulator = (emulator_key(run), emulator)
        return {
            **asdict(describe_emulator(emulator, self._full)),
            "digest": digest_of_weights(emulator),
            "layers": emulator.plan.to_json(),
            "importance": list(importance.scores) if importance else None,
            "importance_seconds": importance.seconds if importance else 0.0,
            "build_seconds": seconds,
        }

    def _tune(self, run: RunFile, data: Data) -> Result:
        emulator, started = self._emulator_of(run), time.monotonic()
        spec = adapter_spec(run, emulator.plan.adapter_layers)
        rounds, candidates = [], []
        try:
            for one in tune_in_rounds(emulator, spec, run, data.partitions, self._reporter):
                validation = self._measure(run, emulator, data.validation).loss if data.validation else None
                rounds.append({"round": one.number, "train_loss": one.train_loss, "validation_loss": validation})
                candidates.append((one.adapter, validation))
        except RoundFailedError as error:
            return {"failed": str(error), "rounds": rounds, "seconds": time.monotonic() - started}
        number, adapter = best_round(candidates)
        seconds = time.monotonic() - started
        with plugged_in(emulator.model, emulator.layout, spec, adapter):
            emulator_tuned = self._measure(run, emulator, data.test)
        with plugged_in(self._full.model, self._full.layout, spec, adapter):
            plug_in = self._measure(run, self._full, data.test)
        results = {"emulator_tuned": _figures(emulator_tuned), "plug_in": _figures(plug_in)}
        return {"results": results, "rounds": rounds, "chosen_round": number, "seconds": seconds}

    def _attack(self, run: RunFile, data: Data, zero_shot: Metrics) -> Result:
        target = Target(self._full, self._emulator_of(run), zero_shot)
        return attack_emulator(run, target, data, self._reporter).to_json()

    def _reference(self, run: RunFile, data: Data) -> Result:
        with full_fine_tuned(run, self._full, data, self._reporter) as tuned:
            return _figures(self._measure(run, tuned, data.test))

    def _measure(self, run: RunFile, held: LanguageModel | Emulator, records: Sequence[Record]) -> Metrics:
        with compiled_as_asked(run.model, held):
            return evaluate(held.model, held.tokenizer, records, reporter=self._reporter)

    def _emulator_of(self, run: RunFile) -> Emulator:
        key = emulator_key(run)
        if self._emulator is None or self._emulator[0] != key:
            self._emulator = None  # frees the last one first
            emulator = self._workbench_of(run).build(run.emulator)
            if digest_of_weights(emulator) != self._digests[key]:
                self._reporter.note("warning: built again, the emulator is not the one before bit for bit")
            self._emulator = (key, emulator)
        return self._emulator[1]

    def _workbench_of(self, run: RunFile) -> Workbench:
        key = run.importance.model_dump_json()
        if key not in self._workbenches:
            self._workbenches[key] = Workbench(self._full, run, self._reporter)
        return self._workbenches[key]

    def _digest_of(self, source: str) -> str:
        if source not in self._file_digests:
            content = asset_or_path(source, self._reporter).read_bytes()
            self._file_digests[source] = hashlib.sha256(content).hexdigest()
        return self._file_digests[source]


def _figures(metrics: Metrics) -> Result:
    return dict(metrics.to_json())


def _digest_of_tokenizer(full: LanguageModel) -> str:
    """Returns SHA-256, in hex, over tokenizer and chat template, which the model's own digest leaves out."""
    return hashlib.sha256(json.dumps(tokenizer_files(full.tokenizer), sort_keys=True).encode()).hexdigest()


def digest_of_weights(emulator: Emulator) -> str:
    """Returns SHA-256, in hex, over plan and weights: builders that come to the same emulator share its figures."""
    digest = hashlib.sha256(json.dumps(emulator.plan.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(emulator.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
