from pathlib import Path

from transformers import AutoTokenizer

from scaleot_core.assets.gguf_model import write_model_directory
from tests.support.tiny_gguf import write_llama


def test_the_tokenizer_merges_splits_digits_and_keeps_special_tokens_whole(tmp_path: Path) -> None:
    write_llama(tmp_path / "model.gguf")
    write_model_directory(tmp_path / "model.gguf", tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.tokenize("the 12<|end|>") == ["the", "Ġ", "1", "2", "<|end|>"]
    assert tokenizer.decode(tokenizer("the 12\nthem")["input_ids"]) == "the 12\nthem"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
