import math
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from scaleot_core.errors import DataError
from scaleot_core.evaluation import Metrics, evaluate
from scaleot_core.progress import SilentReporter
from scaleot_core.training.data import (
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    Message,
    Record,
    TextRecord,
    collate,
    encode_for_training,
)
from tests.support.tiny_models import tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SENTENCES = ["the film is good", "the story is bad", "a", "bad and false and bad", "the sentence is this or this"]
CLASSES = [
    ChoiceRecord(f"{sentence}\nQuestion: positive or negative? Answer:", ("negative", "positive"), index % 2)
    for index, sentence in enumerate(SENTENCES)
]
QUESTIONS = [
    ChoiceRecord(sentence, ("good", "a bad story and a false film", "true is true", "xyz"), index % 4)
    for index, sentence in enumerate(SENTENCES)
]


def metrics(model: PreTrainedModel, records: Sequence[Record], batch_tokens: int = 512) -> Metrics:
    return evaluate(model, TOKENIZER, records, batch_tokens=batch_tokens, reporter=SilentReporter())


def plain_likelihood(model: PreTrainedModel, context: str, target: str) -> float:
    """Sum of the log-probabilities of the tokens of ``target`` after ``context``, as written."""
    start, whole = len(TOKENIZER(context)["input_ids"]), TOKENIZER(context + target)["input_ids"]
    with torch.no_grad():
        log_probabilities = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
    return float(sum(log_probabilities[place - 1, whole[place]] for place in range(start, len(whole))))


def training_loss(model: PreTrainedModel, records: Sequence[Record]) -> float:
    batch = collate(encode_for_training(records, TOKENIZER, max_tokens=128), 0, torch.device("cpu"))
    with torch.no_grad():
        loss = model(batch.input_ids, attention_mask=(batch.input_ids != 0).long(), labels=batch.labels).loss
    return float(loss)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("records", [CLASSES, QUESTIONS], ids=["classes", "questions"])
def test_choices_are_ranked_by_likelihood_and_by_likelihood_per_character(
    model_type: str, records: list[ChoiceRecord]
) -> None:
    for seed in range(3):
        model = tiny_model(model_type, layers=2, seed=seed)
        best, best_per_character = 0, 0
        for record in records:
            likelihoods = [plain_likelihood(model, record.context, f" {choice}") for choice in record.choices]
            best += likelihoods.index(max(likelihoods)) == record.label
            shares = [value / len(choice) for value, choice in zip(likelihoods, record.choices, strict=True)]
            best_per_character += shares.index(max(shares)) == record.label
        for batch_tokens in (1, 64, 4096):
            measured = metrics(model, records, batch_tokens)
            assert (measured.accuracy, measured.accuracy_norm) == (best / 5, best_per_character / 5)


def test_the_norm_is_the_length_in_characters_not_in_tokens_words_or_bytes() -> None:
    model = tiny_model("llama", tied=False, layers=2)
    model.get_output_embeddings().weight.data.zero_()  # every token is equally likely
    best_by_tokens, best_by_words, best_by_bytes, best_by_characters = "xq", "x q x q", "éééééé", "xqxqxqxq"
    choices = (best_by_tokens, best_by_words, best_by_bytes, best_by_characters)
    tokens = [len(TOKENIZER(f" {choice}")["input_ids"]) for choice in choices]
    assert tokens == [3, 8, 13, 9]
    for label in range(4):
        measured = metrics(model, [ChoiceRecord("the film is", choices, label)])
        assert (measured.accuracy, measured.accuracy_norm) == (label == 0, label == 3)
        assert measured.loss == pytest.approx(math.log(320), abs=1e-5)


def test_ties_go_to_the_first_choice() -> None:
    records = [ChoiceRecord("the film is", ("good", "good"), label) for label in (0, 1, 1, 1)]
    measured = metrics(tiny_model("llama", layers=2), records)
    assert (measured.accuracy, measured.by_record) == (0.25, (1.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("records", [CLASSES, QUESTIONS], ids=["classes", "questions"])
def test_the_loss_of_choices_is_the_training_loss(records: list[ChoiceRecord]) -> None:
    model = tiny_model("llama", layers=2)
    assert metrics(model, records).loss == pytest.approx(training_loss(model, records), abs=1e-4)


def test_the_loss_of_a_chat_is_the_training_loss() -> None:
    chat = [Message("user", "is it good?"), Message("assistant", "it is"), Message("assistant", "true")]
    records = [ChatRecord(tuple(chat)), ChatRecord(tuple(chat[:2]))]
    model = tiny_model("gpt2", layers=2)
    measured = metrics(model, records)
    assert measured.loss == pytest.approx(training_loss(model, records), abs=1e-4)
    assert measured.perplexity == pytest.approx(math.exp(measured.loss))
    assert measured.examples == 2


def test_the_loss_of_completions_counts_the_targets_and_no_end_of_text() -> None:
    records = [CompletionRecord(sentence, "a true story") for sentence in SENTENCES]
    model = tiny_model("llama", layers=2)
    tokens = sum(len(TOKENIZER(" a true story")["input_ids"]) for _ in records)
    expected = -sum(plain_likelihood(model, record.context, " a true story") for record in records) / tokens
    measured = metrics(model, records)
    assert measured.loss == pytest.approx(expected, abs=1e-4)
    assert measured.perplexity == pytest.approx(math.exp(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("model_type", "window", "block"), [("llama", 128, 128), ("gpt2", 128, 128), ("llama", 2048, 512)]
)
def test_perplexity_of_text_is_that_of_blocks_of_512_or_the_models_window(
    model_type: str, window: int, block: int
) -> None:
    """512 is the block of the published WikiText figures of offsite-tuning."""
    model = tiny_model(model_type, layers=2)
    model.config.max_position_embeddings = window  # llama's are rotary: it reads as far as its configuration says
    repeated = enumerate(SENTENCES * 3, start=1)
    records = [TextRecord(sentence * (repeats * block // 128)) for repeats, sentence in repeated]
    whole = TOKENIZER("".join(record.text + "</s>" for record in records))["input_ids"]
    blocks = torch.tensor(whole[: len(whole) // block * block]).view(-1, block)
    assert len(blocks) > 2
    with torch.no_grad():
        expected = float(model(blocks, labels=blocks).loss)
    for batch_tokens in (1, 4096):
        measured = metrics(model, records, batch_tokens)
        assert measured.loss == pytest.approx(expected, abs=1e-4)
        assert measured.perplexity == pytest.approx(math.exp(expected), rel=1e-3)


def test_a_model_that_learnt_the_answers_gives_them() -> None:
    records = [
        AnswerRecord("the film is", ("bad or good", "xyz")),
        AnswerRecord("the long story is", ("true",)),
        AnswerRecord("Question: is this sentence positive? Answer:", ("the negative",)),
    ]
    model = tiny_model("llama", layers=2).requires_grad_(True)
    before = metrics(model, records)
    batch = collate(encode_for_training(records, TOKENIZER, max_tokens=64), 0, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(batch.input_ids, attention_mask=(batch.input_ids != 0).long(), labels=batch.labels).loss.backward()
        optimizer.step()
    assert before.accuracy == 0.0
    measured = metrics(model, records)
    assert (measured.accuracy, measured.f1, measured.perplexity) == (1.0, 1.0, None)
    assert measured.loss < 0.1 < before.loss
    accepted_second = [AnswerRecord(records[0].context, ("xyz", "bad or good")), *records[1:2]]
    assert metrics(model, accepted_second).accuracy == 1.0
    half_right = [AnswerRecord(records[0].context, ("bad or false",))]
    assert metrics(model, half_right).accuracy == 0.0
    measured = metrics(model, [*records[:1], *half_right])
    assert measured.by_record == (1.0, pytest.approx(2 / 3)) and measured.f1 == pytest.approx(5 / 6)


def test_dropout_is_off_during_evaluation_and_on_again_after_it() -> None:
    model = tiny_model("gpt2", layers=2).train()
    assert metrics(model, QUESTIONS) == metrics(model, QUESTIONS)
    assert model.training
    assert metrics(model.eval(), QUESTIONS) == metrics(model, QUESTIONS)
    assert not model.training


def test_a_model_that_diverged_gets_no_point_and_null_for_its_loss() -> None:
    model = tiny_model("llama", layers=2)
    model.get_output_embeddings().weight.data.fill_(float("nan"))
    assert metrics(model, CLASSES).to_json() == {"loss": None, "accuracy": 0.0, "accuracy_norm": 0.0, "examples": 5}
    assert metrics(model, [TextRecord("the film")]).to_json() == {"loss": None, "perplexity": None, "examples": 1}


def test_json_leaves_out_what_was_not_measured() -> None:
    assert Metrics(2.0, 7, accuracy=0.5).to_json() == {"loss": 2.0, "examples": 7, "accuracy": 0.5}
    assert Metrics(2000.0, 7, perplexity=math.inf).to_json() == {"loss": 2000.0, "examples": 7, "perplexity": None}


def test_records_of_several_kinds_or_none_are_refused() -> None:
    model = tiny_model("llama", layers=2)
    with pytest.raises(DataError, match="at least one record"):
        metrics(model, [])
    with pytest.raises(DataError, match="every record to be a ChoiceRecord"):
        metrics(model, [*CLASSES, TextRecord("the film")])
