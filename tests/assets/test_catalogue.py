import json
from pathlib import Path

import pytest

from scaleot_core.assets import ASSETS, asset_path
from scaleot_core.assets.wheels import file_sha256

# What a revision of a conversion makes is the same everywhere; a change here needs a new revision in the catalogue.
DIGESTS = {
    "smollm2-135m/config.json": "6ac1a45c7289ffbdb45cd062bfbd09b0f2fcbaf56645f7d4f64e16808b162a7c",
    "smollm2-135m/model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "smollm2-135m/tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
    "smollm2-135m/tokenizer_config.json": "0ff0201a9e94df3c1a38d9f1a40936def4592e80af24628440da680cc1168965",
    "sst2-train.jsonl": "56289528caef46af7864c4ff6e486e1b3cfd431649b42f1457131133befbf652",
    "sst2-test.jsonl": "f4871ab9dd0b1b7a052e1b69ccf6d97eee0cc4c97ba76027de6a4744187534c7",
    "boolq-passages.jsonl": "ee7bdab8a885f5da7bd625fa1be793edd518097defb5bf1c4e9a839ac9d821db",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ASSETS)
def test_the_real_asset_is_made_to_the_byte(name: str) -> None:
    path = asset_path(name)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    made = {file.relative_to(path.parent).as_posix(): file_sha256(file) for file in files}
    assert made == {file: digest for file, digest in DIGESTS.items() if file.startswith(path.name)}


@pytest.mark.slow
def test_sst2_has_572_training_and_300_test_records_and_boolq_2938_passages() -> None:
    counts = {name: len(read_records(asset_path(name))) for name in ("sst2-train", "sst2-test", "boolq-passages")}
    assert counts == {"sst2-train": 572, "sst2-test": 300, "boolq-passages": 2938}


def read_records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
