"""What a run file may say: its sections and keys, one frozen, strict schema.

The defaults written here are the built-in quickstart. To add a key, add one line to its section: its default, its
range and one sentence about it, which ``to_toml`` writes beside the value. A key that holds a path is listed in
``config`` too.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from scaleot_core.address import parse_address
from scaleot_core.errors import InputError

BuilderName = Literal["scaleot", "uniform", "distilled", "importance_drop", "crash", "gradot"]
AggregationName = Literal["fedavg", "ffa", "product", "median", "trimmed_mean", "multi_krum", "geometric_median"]


class Section(BaseModel):
    """A table of the run file: frozen, no coercion of types, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """The model owner's full model."""

    source: str = Field(
        "smollm2-135m", min_length=1, description="an embedded asset's name, or a directory in Hugging Face format"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of the frozen weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU, or several if it must")
    compiled: bool = Field(
        False,
        description="torch.compile of the layers, for long runs: while importance is learnt, in full fine-tuning, and "
        "where zero-shot, emulator, plug-in and reference are evaluated",
    )


class ImportanceSection(Section):
    """Dynamic LayerReplace; its result is cached by a digest of model, text and these settings."""

    text: str = Field(
        "boolq-passages", min_length=1, description='public text: an asset, a .txt, or JSON lines with "text"'
    )
    steps: int = Field(100, ge=1, description="training steps of the harmonizers")
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
        1.0, ge=0, description="of the hidden-state loss beside the cross-entropy; the paper has none"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recomputes activations while harmonizers learn, of distilled and of a healing attack too: "
        "less memory, more time, the same result",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of this stage alone, so that runs of any seed share it")


class EmulatorSection(Section):
    """How the full model is compressed."""

    builder: BuilderName = Field("scaleot", description="ScaleOT, or a baseline beside it")
    num_adapter_layers: int = Field(4, ge=1, description="N_a: layers that are tuned")
    adapter_rule: Literal["most_important", "ends", "spread", "spread_by_importance", "gradient"] = Field(
        "spread", description="which layers"
    )
    layer_scores: Literal["importance", "leave_one_out", "angular_change", "cka", "random"] = Field(
        "importance",
        description="whose scores choose the layers to replace or drop, of scaleot and importance_drop: those that "
        "Dynamic LayerReplace learnt, or a control's",
    )
    replaced_layer_share: float = Field(0.25, ge=0, le=1, description="alpha: 0 keeps every layer, 1 none but N_a")
    removed_rank_share: float = Field(0.5, ge=0, le=1, description="beta: 0 keeps the full rank, 1 the least")
    rank_target: Literal["attention", "ffn", "both"] = Field("attention", description="whose rank is reduced")
    rank_criterion: Literal["weight", "activation"] = Field(
        "activation",
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
    examples_per_class: int = Field(
        0, ge=0, description="few-shot: training records of each label, drawn by the seed; 0 takes all"
    )


def _every_client(valid: dict[str, Any]) -> int:
    return int(valid["clients"])


def _half_of_a_round(valid: dict[str, Any]) -> int:
    return (int(valid["clients_per_round"]) + 1) // 2


class FederationSection(Section):
    """The rounds."""

    engine: Literal["in-process", "flower"] = Field("in-process", description="flower: Flower's simulation engine")
    clients: int = Field(4, ge=1, description="data owners")
    rounds: int = Field(6, ge=1, description="times the adapter goes out and comes back")
    clients_per_round: int = Field(default_factory=_every_client, ge=1, description="every client unless given")
    quorum: int = Field(
        default_factory=_half_of_a_round,
        ge=1,
        description="updates without which a round has no adapter: half of clients_per_round unless given",
    )
    over_selection: float = Field(
        1.0, ge=1, le=10, description="times clients_per_round are asked, and the slowest are not waited for"
    )
    round_deadline_seconds: float = Field(
        86_400.0, gt=0, description="a round's slowest client is not waited for longer"
    )
    partition: Literal["iid", "dirichlet"] = Field("dirichlet", description="how the training records are divided")
    partition_alpha: float = Field(1.0, gt=0, description="of dirichlet: the smaller, the less alike the clients")
    local_steps: int = Field(20, ge=1, description="optimiser steps of a client in a round")
    batch_size: int = Field(4, ge=1, description="records in a batch")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="of the clients")
    learning_rate: float = Field(2e-3, gt=0, description="of the clients")
    max_tokens: int = Field(512, ge=2, description="longest training example; a longer context loses its beginning")
    gradient_checkpointing: bool = Field(
        False,
        description="recomputes activations, of clients, reference and strong emulator: "
        "less memory, more time, the same result",
    )
    aggregation: AggregationName = Field(
        "fedavg",
        description="means: fedavg; ffa, which freezes LoRA's A, and product, of B A, are exact; "
        "the others withstand hostile clients; ffa unless given where a mechanism hides single records",
    )
    trimmed_share: float = Field(0.2, gt=0, lt=0.5, description="of trimmed_mean: clients left out at either end")
    assumed_attackers: int = Field(
        1, ge=1, validate_default=True, description="f of multi_krum, which needs 2 f + 3 clients in a round"
    )

    # ``info`` is pydantic's ValidationInfo, a protocol that cannot be checked at run time.
    @field_validator("clients_per_round", mode="after")
    @classmethod
    def _no_more_than_there_are(cls, count: int, info: Any) -> int:
        clients = info.data.get("clients")
        if clients is not None and count > clients:
            raise PydanticCustomError("scaleot", "at most federation.clients, which is {clients}", {"clients": clients})
        return count

    @field_validator("quorum", mode="after")
    @classmethod
    def _no_more_than_a_round_has(cls, quorum: int, info: Any) -> int:
        clients = info.data.get("clients_per_round")
        if clients is not None and quorum > clients:
            raise PydanticCustomError(
                "scaleot", "at most federation.clients_per_round, which is {clients}", {"clients": clients}
            )
        return quorum

    @field_validator("assumed_attackers", mode="after")
    @classmethod
    def _leaves_clients_enough(cls, attackers: int, info: Any) -> int:
        clients = info.data.get("clients_per_round")
        if info.data.get("aggregation") == "multi_krum" and clients is not None and clients < 2 * attackers + 3:
            raise PydanticCustomError(
                "scaleot",
                "2 f + 3 clients in a round, at least {needed}; federation.clients_per_round is {clients}",
                {"needed": 2 * attackers + 3, "clients": clients},
            )
        return attackers


MOST_LMO_DIRECTIONS = 8
"""What ``lmo-dp`` itself takes."""


def _directions_of_mechanism(valid: dict[str, Any]) -> int:
    return MOST_LMO_DIRECTIONS if valid.get("mechanism") == "lmo-dp" else 16


class PrivacySection(Section):
    """The data owners' differential privacy."""

    mechanism: Literal["none", "dp-sgd", "dpzero", "lmo-dp", "update-gaussian", "client-level"] = Field(
        "none", description="none: updates can leak training text; client-level: the server adds the noise, trusted"
    )
    epsilon: float = Field(8.0, gt=0, description="every data owner's budget, over all rounds")
    delta: float = Field(1e-5, gt=0, lt=1, description="less than one over the records of the smallest data owner")
    max_grad_norm: float = Field(
        1.0, ge=1e-9, le=1e9, description="bound of one example; of update-gaussian and client-level, of an update"
    )
    noise_multiplier: float = Field(
        0.0, ge=0, le=1e7, description="standard deviation over that bound; 0 takes the least that keeps the budget"
    )
    num_directions: int = Field(
        default_factory=_directions_of_mechanism, ge=1, le=4096, description="K of dpzero, and of lmo-dp, at most 8"
    )
    smoothing: float = Field(
        0.05,
        ge=1e-9,
        le=1e9,
        description="lambda of dpzero and lmo-dp: at 1e-3, the paper's, bfloat16's rounding hides the slope",
    )

    @field_validator("num_directions", mode="after")
    @classmethod
    def _few_enough_for_its_noise(cls, count: int, info: Any) -> int:
        if info.data.get("mechanism") == "lmo-dp" and count > MOST_LMO_DIRECTIONS:
            expected = "at most {most} under lmo-dp, whose noise costs far more on many scalars; or take dpzero"
            raise PydanticCustomError("scaleot", expected, {"most": MOST_LMO_DIRECTIONS})
        return count


class CanarySection(Section):
    """What the model owner tries every round's adapter on, inside the emulator, before any data owner gets it."""

    text: str = Field("", description="an asset's name or a file of public records, as data.test; empty: none")
    tolerance: float = Field(0.2, gt=0, description="a loss higher by more than this share throws the round away")


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
    tasks: dict[str, TaskSection] = Field(
        default_factory=dict, description="by name, as files may have; none: [data] alone"
    )
    vary: dict[str, list[Any]] = Field(default_factory=dict, description='"section.key" to the values it takes')
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description='by name: "section.key" to its value; none: the run file as it is'
    )
    attacks: bool = Field(default=False, description="attacks every point's emulator, too, as [model_privacy] says")

    @field_validator("builders", "seeds", mode="after")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise PydanticCustomError("scaleot", "each once: a row would count a run twice")
        return values

    @field_validator("tasks", mode="after")
    @classmethod
    def _named_for_files(cls, tasks: dict[str, TaskSection]) -> dict[str, TaskSection]:
        odd = [name for name in tasks if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]
        alike = [name for name in tasks if sum(name.casefold() == other.casefold() for other in tasks) > 1]
        if odd or alike:
            expected = (
                "names of A-Z, a-z, 0-9, '.', '_' and '-', after a letter or digit, that differ in more than case"
            )
            named = ", ".join(json.dumps(name, ensure_ascii=False) for name in (*odd, *alike))
            raise PydanticCustomError(
                "scaleot", expected + ", for files are named after them: not {names}", {"names": named}
            )
        return tasks

    @field_validator("vary", mode="after")
    @classmethod
    def _different_values(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in vary.items():
            _check_key(key)
            if not values or any(value in values[:position] for position, value in enumerate(values)):
                raise PydanticCustomError("scaleot", "for {name} one or more values, each once", {"name": key})
        return vary

    @field_validator("variants", mode="after")
    @classmethod
    def _keys_that_vary(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for settings in variants.values():
            for key in settings:
                _check_key(key)
        return variants


def _check_key(key: str) -> None:
    if key == "seed" or key.startswith("compare."):
        expected = 'no "{name}", which a comparison sets itself: seeds stand in compare.seeds'
        raise PydanticCustomError("scaleot", expected, {"name": key})


class ModelPrivacySection(Section):
    """Attacks on the emulator, and the owner's record of what has left."""

    strong_emulator_steps: int = Field(
        120, ge=0, description="of tuning all of the emulator on the clients' pooled text; 0: not measured"
    )
    strong_emulator_learning_rate: float = Field(
        1e-4, gt=0, description="of AdamW; batches as federation's, at most evaluation.full_fine_tuning_batch_size"
    )
    healing_steps: list[int] = Field(
        default_factory=lambda: [0, 20],
        description="steps of tuning it on importance.text, ascending; []: not measured",
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


class ServeSection(Section):
    """Where ``scaleot serve`` listens, and how much of the network it stands."""

    fleet: str = Field("127.0.0.1:9443", description="host:port where the data owners' nodes connect, by HTTPS")
    distribution: str = Field("127.0.0.1:9444", description="host:port that gives out sealed emulators, by gRPC")
    superlink_port: int = Field(9445, ge=1, le=65_535, description="Flower's own port, on this machine alone")
    max_request_mib: int = Field(16, ge=6, le=1024, description="largest request; Flower sends tensors by 5 MiB")
    requests_per_second: float = Field(50.0, ge=1, description="of one network address; three nodes need about 5")

    @field_validator("fleet", "distribution", mode="after")
    @classmethod
    def _are_addresses(cls, text: str) -> str:
        try:
            return str(parse_address(text))
        except InputError as error:
            raise PydanticCustomError("scaleot", "{fault}", {"fault": str(error)}) from error


def _section(model: type[Section], purpose: str) -> Any:
    build: Callable[[], Section] = model
    return Field(default_factory=build, description=purpose)


def aggregation_fault(aggregation: object, adapter_kind: object, mechanism: object) -> str | None:
    """Says what a rule of aggregation expects beside it where another section stands against it, or nothing."""
    if aggregation in ("ffa", "product") and adapter_kind in ("layers", "bottleneck"):
        lacks = "A to freeze" if aggregation == "ffa" else "product B A"
        return f'adapter.kind = "lora" beside it: another adapter has no {lacks}'
    if aggregation in get_args(AggregationName)[2:] and mechanism in ("dpzero", "lmo-dp"):
        return f'"fedavg" or "ffa" beside privacy.mechanism = "{mechanism}", whose scalars can only be averaged'
    if aggregation in get_args(AggregationName)[2:] and mechanism == "client-level":
        return '"fedavg" or "ffa" beside privacy.mechanism = "client-level", whose noise is made for a sum'
    return None


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
    canary: CanarySection = _section(CanarySection, "public text that every round's adapter is tried on")
    evaluation: EvaluationSection = _section(EvaluationSection, "what is measured")
    model_privacy: ModelPrivacySection = _section(ModelPrivacySection, "what can be made of the emulator")
    compare: CompareSection = _section(CompareSection, "what scaleot compare sets side by side")
    serve: ServeSection = _section(ServeSection, "where scaleot serve listens")

    @model_validator(mode="after")
    def _noise_fits(self) -> "RunFile":
        if self.privacy.mechanism == "lmo-dp" and self.privacy.noise_multiplier:
            fault = "0 under lmo-dp, whose noise has no single multiplier: it is calibrated to epsilon"
            raise PydanticCustomError("scaleot", "{fault}", {"fault": fault, "key": "privacy.noise_multiplier"})
        return self

    @model_validator(mode="after")
    def _aggregation_fits(self) -> "RunFile":
        if (
            "aggregation" not in self.federation.model_fields_set
            and self.adapter.kind == "lora"
            and self.privacy.mechanism in ("dp-sgd", "dpzero", "lmo-dp")
        ):
            # A default of one section that follows two others: set, and still not given.
            federation = self.federation.model_copy(update={"aggregation": "ffa"})
            federation.model_fields_set.discard("aggregation")
            vars(self)["federation"] = federation
        aggregation = self.federation.aggregation
        if fault := aggregation_fault(aggregation, self.adapter.kind, self.privacy.mechanism):
            raise PydanticCustomError("scaleot", "{fault}", {"fault": fault, "key": "federation.aggregation"})
        return self
