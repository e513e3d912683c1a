import re
from pathlib import Path
from typing import get_args

import fl_clients.acceptance
import scaleot_core.enrolment as package
from fl_server import audit_log, chain_file, registry
from scaleot_core.bundle.hash_chain import Line
from scaleot_core.enrolment import admission, request

SOURCES = Path(package.__file__).parent
DOCUMENT = (SOURCES / "ENROLMENT.md").read_text(encoding="utf-8")
CODE = r"(?:enrolment|admission|fingerprint|head)\.[a-z]+"


def named(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_0-9]+)`", text))


def test_the_document_lists_exactly_the_codes_that_exist() -> None:
    files = [*SOURCES.glob("*.py"), Path(fl_clients.acceptance.__file__)]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    written_out = set(re.findall(rf'VerificationError\(\s*"({CODE})"', text))
    signed = {f"{kind}.{what}" for kind in ("enrolment", "admission", "head") for what in ("size", "json", "fields")}
    signed |= {f"{kind}.signature" for kind in ("enrolment", "admission", "head")}
    listed = set(re.findall(rf"`({CODE})`", DOCUMENT)) - {"enrolment.json"}
    assert listed | {"enrolment.json"} == written_out | signed


def test_the_table_of_the_registry_lists_exactly_the_types_and_fields_of_the_code() -> None:
    section = DOCUMENT[DOCUMENT.index("## 6.") : DOCUMENT.index("## 7.")]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    listed = {row[0]: named(row[1]) for row in rows if row[0] != "type"}
    kinds = get_args(registry.Entry)
    assert listed == {kind.model_fields["type"].default: set(kind.model_fields) - {"type"} for kind in kinds}


def test_request_and_admission_are_described_field_by_field() -> None:
    section = DOCUMENT[DOCUMENT.index("## 2.") : DOCUMENT.index("## 3.")]
    first_column = "".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE))
    assert named(first_column) == set(request.EnrolmentRequest.model_fields)
    section = DOCUMENT[DOCUMENT.index("## 3.") : DOCUMENT.index("| code |")]
    first_column = "".join(re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE))
    assert named(first_column) == set(admission.Admission.model_fields)
    assert set(admission.AdmissionContents.model_fields) <= named(section)
    assert set(admission.Terms.model_fields) <= named(section)


def test_the_document_names_the_constants_of_the_code() -> None:
    for constant in (
        request.ENROLMENT_TYPE,
        admission.ADMISSION_TYPE,
        audit_log.HEAD_TYPE,
        audit_log.FORMAT,
        registry.FORMAT,
        f"{request.MAX_REQUEST_BYTES // 1024} KiB",
        f"{admission.MAX_ADMISSION_BYTES // 1024**2} MiB",
        f"{chain_file.MAX_LINE_BYTES // 1024} KiB",
        "{" + ",".join(f'"{name}"' for name in sorted([*Line.model_fields, "sha256"])) + "}",
        *(audit_log.SignedHead.model_fields[name].default for name in ("type",)),
    ):
        assert constant in DOCUMENT, constant
    assert set(audit_log.SignedHead.model_fields) <= named(DOCUMENT[DOCUMENT.index("A signed head") :])
