"""The run file: what a run does, read once from TOML into one frozen, strict schema.

The defaults written here are the built-in quickstart. To add a key, add one line to its section: its default, its
range and one sentence about it, which ``to_toml`` writes beside the value.

A relative path in a run file starts at the run file's own directory, one given by ``--set`` at the current directory.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from scaleot_core.assets import is_asset
from scaleot_core.config_faults import Document, Key, describe_faults, path_fault
from scaleot_core.errors import RunFileError

BuilderName = Literal["scaleot", "uniform", "distilled", "importance_drop", "crash", "gradot"]


class Section(BaseModel):
    """A table of the run file: frozen, no coercion of types, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """The model owner's full model."""

    source: str = Field(
        "smollm2-135m", min_length=1, description="an embedded asset's name, or a directory in Hugging Face format"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of the frozen weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")


class ImportanceSection(Section):
    """Dynamic LayerReplace; its result is cached by a digest of model, text and these settings."""

    text: str = Field(
        "boolq-passages", min_length=1, description='public text: an asset, a .txt, or JSON lines with "text"'
    )
    steps: int = Field(300, ge=1, description="training steps of the harmonizers")
    candidates: int = Field(3, ge=2, description="replacements compared at each update of the scores")
    harmonizer_rank: int = Field(64, ge=1, description="width of a harmonizer")
    batch_size: int = Field(4, ge=1, description="blocks of text in a batch")
    block_tokens: int = Field(128, ge=2, description="tokens in a block of text")
    harmonizer_learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    score_learning_rate: float = Field(0.2, gt=0, description="the paper's eta; for a raw reward about 10")
    score_every_steps: int = Field(2, ge=1, description="training steps between two updates of the scores")
    group_size: int = Field(4, ge=2, description="layers in a group, of which half are replaced")
    regroup: Literal["random", "fixed"] = Field("random", description="groups afresh for every sample, or contiguous")
    reward: Literal["raw", "normalised"] = Field("normalised", description="by the candidates' deviation, or as it is")
    harmonizer_start: Literal["identity", "closed_form"] = Field(
        "closed_form", description="identity as in the paper, or a regression on the public text"
    )
    closed_form_blocks: int = Field(128, ge=1, description="blocks of text behind the closed form")
    hidden_state_weight: float = Field(
        0.0, ge=0, description="of the hidden-state loss beside the cross-entropy; the paper has none"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of this stage alone, so that runs of any seed share it")


class EmulatorSection(Section):
    """How the full model is compressed."""

    builder: BuilderName = Field("scaleot", description="ScaleOT, or a baseline beside it")
    num_adapter_layers: int = Field(4, ge=1, description="N_a: layers that are tuned")
    adapter_rule: Literal["most_important", "ends", "spread", "gradient"] = Field("spread", description="which layers")
    replaced_layer_share: float = Field(0.25, ge=0, le=1, description="alpha: 0 keeps every layer, 1 none but N_a")
    removed_rank_share: float = Field(0.0, ge=0, le=1, description="beta: 0 keeps the full rank, 1 the least")
    rank_target: Literal["attention", "ffn", "both"] = Field("attention", description="whose rank is reduced")
    rank_criterion: Literal["weight", "activation"] = Field(
        "weight",
        description="a low-rank map is nearest in its weights, as in the paper, or in its output on public text",
    )
    public_blocks: int = Field(64, ge=1, description="blocks of importance.text that a builder or rule may read")
    loss_increase_weight: float = Field(
        100.0, ge=0, description="lambda of gradot: what a higher loss of the emulator counts beside a kept gradient"
    )
    distillation_steps: int = Field(300, ge=1, description="of the builder distilled, on all of importance.text")
    distillation_learning_rate: float = Field(1e-4, gt=0, description="of AdamW, for distilled")
    distillation_hidden_state_weight: float = Field(30.0, ge=0, description="of distilled's hidden-state loss")


class AdapterSection(Section):
    """What is trained, averaged and plugged in."""

    kind: Literal["lora", "layers", "bottleneck"] = Field("lora", description="what the adapter layers carry")
    rank: int = Field(8, ge=1, description="of lora and bottleneck; layers has none")


class DataSection(Section):
    """The data owners' records, JSON lines (.gz too)."""

    train: str = Field(
        "sst2-train", min_length=1, description="an asset's name or a file; it is divided among the clients"
    )
    test: str = Field(
        "sst2-test", description="an asset's name or a file; empty holds evaluation.examples records of train back"
    )
    validation: str = Field(
        "", description="an asset's name or a file; the round with the least emulator loss on it wins, not the last"
    )


def _every_client(valid: dict[str, Any]) -> int:
    return int(valid["clients"])


class FederationSection(Section):
    """The rounds."""

    engine: Literal["in-process", "flower"] = Field("in-process", description="flower: Flower's simulation engine")
    clients: int = Field(4, ge=1, description="data owners")
    rounds: int = Field(6, ge=1, description="times the adapter goes out and comes back")
    clients_per_round: int = Field(default_factory=_every_client, ge=1, description="every client unless given")
    partition: Literal["iid", "dirichlet"] = Field("dirichlet", description="how the training records are divided")
    partition_alpha: float = Field(1.0, gt=0, description="of dirichlet: the smaller, the less alike the clients")
    local_steps: int = Field(20, ge=1, description="optimiser steps of a client in a round")
    batch_size: int = Field(4, ge=1, description="records in a batch")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="of the clients")
    learning_rate: float = Field(2e-3, gt=0, description="of the clients")
    max_tokens: int = Field(512, ge=2, description="longest training example; a longer context loses its beginning")
    aggregation: Literal["fedavg", "ffa"] = Field("fedavg", description="ffa freezes LoRA's A: its average is exact")

    # ``info`` is pydantic's ValidationInfo, a protocol that cannot be checked at run time.
    @field_validator("clients_per_round", mode="after")
    @classmethod
    def _no_more_than_there_are(cls, count: int, info: Any) -> int:
        clients = info.data.get("clients")
        if clients is not None and count > clients:
            raise PydanticCustomError("scaleot", "at most federation.clients, which is {clients}", {"clients": clients})
        return count


class PrivacySection(Section):
    """The data owners' differential privacy."""

    mechanism: Literal["none"] = Field("none", description="no differential privacy: updates can leak training text")
    epsilon: float = Field(8.0, gt=0, description="unused while mechanism is none")
    delta: float = Field(1e-5, gt=0, lt=1, description="unused while mechanism is none")
    max_grad_norm: float = Field(1.0, gt=0, description="unused while mechanism is none")


class EvaluationSection(Section):
    """What is measured."""

    examples: int = Field(300, ge=1, description="records of data.test, from its start")
    full_fine_tuning: bool = Field(True, description="also run the reference that nobody could run in earnest")
    full_fine_tuning_batch_size: int = Field(8, ge=1, description="of the reference, which takes a client's steps")
    full_fine_tuning_learning_rate: float = Field(1e-3, gt=0, description="of the reference, under AdamW")


class TaskSection(Section):
    """One task of a comparison: its own ``[data]``."""

    train: str = Field(min_length=1, description="as data.train")
    test: str = Field("", description="as data.test")
    validation: str = Field("", description="as data.validation")


def _every_builder() -> list[BuilderName]:
    return list(get_args(BuilderName))


class CompareSection(Section):
    """What ``scaleot compare`` sets side by side: every combination of what stands here, on one model."""

    builders: list[BuilderName] = Field(default_factory=_every_builder, min_length=1, description="emulator builders")
    seeds: list[Annotated[int, Field(ge=0, le=2**32 - 1)]] = Field(
        default_factory=lambda: [0, 1, 2], min_length=1, description="runs of everything else; rows show their spread"
    )
    tasks: dict[str, TaskSection] = Field(default_factory=dict, description="by name; none: [data] alone")
    vary: dict[str, list[Any]] = Field(default_factory=dict, description='"section.key" to the values it takes')
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description='by name: "section.key" to its value; none: the run file as it is'
    )


class ModelPrivacySection(Section):
    """Attacks on the emulator, which a run makes only if asked to, and the owner's record of what has left."""

    strong_emulator_steps: int = Field(
        0, ge=0, description="of tuning all of the emulator on the clients' pooled text; 0: not measured"
    )
    strong_emulator_learning_rate: float = Field(1e-4, gt=0, description="of AdamW; batches as federation.batch_size")
    healing_steps: list[int] = Field(
        default_factory=list,
        description="as [0, 50, 200]: steps of tuning it on importance.text; []: not measured",
    )
    healing_learning_rate: float = Field(1e-4, gt=0, description="of AdamW; batches as importance.batch_size")
    disclosure_record: str = Field(
        "", description="the owner's directory, where emulators add up over runs; empty: no record is kept"
    )

    @field_validator("healing_steps", mode="after")
    @classmethod
    def _ascend_from_zero(cls, steps: list[int]) -> list[int]:
        if steps != sorted(set(steps)) or (steps and steps[0] < 0):
            raise PydanticCustomError("scaleot", "whole numbers from 0 upwards, each above the one before")
        return steps


def _section(model: type[Section], purpose: str) -> Any:
    build: Callable[[], Section] = model
    return Field(default_factory=build, description=purpose)


class RunFile(Section):
    """A whole run; ``RunFile()`` is the built-in quickstart."""

    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything but keys and privacy noise")
    model: ModelSection = _section(ModelSection, "the model owner's full model")
    importance: ImportanceSection = _section(ImportanceSection, "Dynamic LayerReplace: layer scores and harmonizers")
    emulator: EmulatorSection = _section(EmulatorSection, "how the full model is compressed")
    adapter: AdapterSection = _section(AdapterSection, "what is trained, averaged and plugged in")
    data: DataSection = _section(DataSection, "the data owners' records")
    federation: FederationSection = _section(FederationSection, "the rounds")
    privacy: PrivacySection = _section(PrivacySection, "the data owners' differential privacy")
    evaluation: EvaluationSection = _section(EvaluationSection, "what is measured")
    model_privacy: ModelPrivacySection = _section(ModelPrivacySection, "what can be made of the emulator")
    compare: CompareSection = _section(CompareSection, "what scaleot compare sets side by side")

    @field_validator("federation", mode="after")
    @classmethod
    def _fits_the_adapter(cls, federation: FederationSection, info: Any) -> FederationSection:
        adapter = info.data.get("adapter")
        if adapter is not None and _freezes_nothing(federation.aggregation, adapter.kind):
            raise PydanticCustomError("scaleot", "{rule}", {"rule": FFA_RULE, "key": "aggregation"})
        return federation


FFA_RULE = 'adapter.kind = "lora" beside it: another adapter has no A to freeze'

PATH_KEYS = {
    ("model", "source"): "directory",
    ("importance", "text"): "file",
    ("data", "train"): "file",
    ("data", "test"): "file",
    ("data", "validation"): "file",
}
"""Keys that hold an embedded asset's name or a path, and what the path leads to; an empty text leads nowhere."""

OUTPUT_KEYS = (("model_privacy", "disclosure_record"),)
"""Keys that hold a path which need not exist yet."""


def read_run_file(path: Path | None, overrides: Sequence[str]) -> RunFile:
    """Reads a run file, sets ``overrides`` ("section.key=value", the value in TOML or bare text) and checks it all.

    Without a path the overrides change the quickstart. Paths come back absolute; whether they lead to something of
    the right kind is checked, what stands in it is not.

    Raises:
        RunFileError: with every fault of the file and the overrides at once.
    """
    source = "the command line" if path is None else str(path)
    document = {} if path is None else _parse(path)
    _make_paths_absolute(document, Path() if path is None else path.parent)
    changes, faults = _parse_overrides(overrides)
    _make_paths_absolute(changes, Path())
    _merge(document, changes)
    run, found = _validate(document)
    faults += [f"{fault} (from --set)" if _is_set(changes, key) else fault for key, fault in found.items()]
    if faults or run is None:
        raise RunFileError(source, tuple(faults))
    return run


def with_settings(run: RunFile, settings: Mapping[str, Any]) -> RunFile:
    """Returns the run file with ``settings`` ("section.key" to a value) in place of its own.

    Raises:
        RunFileError: with every fault of the settings at once.
    """
    changes: Document = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (changes.setdefault(section, {}) if section else changes)[name] = value
    document = run.model_dump()
    _merge(document, changes)
    changed, faults = _validate(document)
    if faults or changed is None:
        raise RunFileError(", ".join(f"{key} = {value!r}" for key, value in settings.items()), tuple(faults.values()))
    return changed


def to_toml(run: RunFile) -> str:
    """Writes the run file in full, each key with its meaning beside it; it reads back to an equal ``RunFile``."""
    values = run.model_dump()
    lines = ["# a run file: scaleot simulate FILE.toml", _line("seed", values["seed"], RunFile)]
    for name, field in RunFile.model_fields.items():
        section = getattr(run, name)
        if isinstance(section, Section):
            lines += ["", f"[{name}]  # {field.description}"]
            tables = {key: value for key, value in values[name].items() if isinstance(value, dict)}
            plain = {key: value for key, value in values[name].items() if key not in tables}
            lines += [_line(key, value, type(section)) for key, value in plain.items()]
            lines += [tomli_w.dumps({name: {key: table}}).rstrip() for key, table in tables.items() if table]
    return "\n".join(lines) + "\n"


def _line(key: str, value: object, section: type[Section]) -> str:
    return f"{tomli_w.dumps({key: value}).rstrip():<40}  # {section.model_fields[key].description}"


def _freezes_nothing(aggregation: object, adapter_kind: object) -> bool:
    return aggregation == "ffa" and adapter_kind in ("layers", "bottleneck")


def _parse(path: Path) -> Document:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFileError(str(path), (f"it cannot be read: {error.strerror}",)) from error
    except (ValueError, RecursionError) as error:
        raise RunFileError(str(path), (f"it is no TOML: {error}",)) from error


def _parse_overrides(overrides: Sequence[str]) -> tuple[Document, list[str]]:
    changes: Document = {}
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts) or len(parts) > 2:
            faults.append(f'--set {override}: expected section.key=value, for example "federation.clients=8"')
        elif len(parts) == 1:
            changes[parts[0]] = _override_value(text)
        elif isinstance(table := changes.setdefault(parts[0], {}), dict):
            table[parts[1]] = _override_value(text)
    return changes, faults


def _override_value(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if parsed.keys() == {"value"} else text.strip()


def _merge(document: Document, changes: Document) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and name in document:
            if isinstance(document[name], dict):
                document[name].update(value)
        else:
            document[name] = value


def _is_set(changes: Document, key: Key) -> bool:
    value: object = changes
    for part in key:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _make_paths_absolute(document: Document, base: Path) -> None:
    for section, key in (*PATH_KEYS, *OUTPUT_KEYS):
        _make_path_absolute(document.get(section), key, base)
    compare = document.get("compare")
    tasks = compare.get("tasks") if isinstance(compare, dict) else None
    for task in tasks.values() if isinstance(tasks, dict) else ():
        for key in TaskSection.model_fields:
            _make_path_absolute(task, key, base)


def _make_path_absolute(table: object, key: str, base: Path) -> None:
    value = table.get(key) if isinstance(table, dict) else None
    if isinstance(table, dict) and isinstance(value, str) and value and not is_asset(value):
        path = Path.home() / value[2:] if value.startswith("~/") else Path(value)
        table[key] = str(base.absolute() / path)


def _validate(document: Document) -> tuple[RunFile | None, dict[Key, str]]:
    faults: dict[Key, str] = {}
    run = None
    try:
        run = RunFile.model_validate(document)
    except ValidationError as error:
        faults = describe_faults(RunFile, error.errors())
    # pydantic skips the rule that joins two sections where one of them has another fault: say it all the same.
    sections = [document.get(name) for name in ("federation", "adapter")]
    federation, adapter = [section if isinstance(section, dict) else {} for section in sections]
    if _freezes_nothing(federation.get("aggregation"), adapter.get("kind")):
        faults.setdefault(("federation", "aggregation"), f'federation.aggregation: got "ffa", expected {FFA_RULE}')
    for (section, key), kind in PATH_KEYS.items():
        table = document.get(section)
        if (
            isinstance(table, dict)
            and isinstance(value := table.get(key), str)
            and value
            and (section, key) not in faults
        ):
            fault = path_fault(value, kind)
            if fault:
                faults[section, key] = f"{section}.{key}: {fault}"
    return run, faults
