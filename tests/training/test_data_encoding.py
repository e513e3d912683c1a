from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from scaleot_core.errors import DataError
from scaleot_core.training.data import (
    IGNORED_LABEL,
    STAND_IN,
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    EncodedExample,
    Message,
    TextRecord,
    collate,
    encode_first_examples,
    encode_for_training,
    text_blocks,
)
from scaleot_core.training.encoding import continuation, encode_contexts, encode_pairs
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTION = "Question: is this sentence positive or negative? Answer:"
CHOICE = ChoiceRecord(QUESTION, ("negative", "positive"), 1)
CHAT = ChatRecord(
    (
        Message("system", "be good"),
        Message("user", "is it true?"),
        Message("assistant", "it is true"),
        Message("user", "is it false?"),
        Message("assistant", "no"),
    )
)


def opening_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def parts(example: EncodedExample) -> tuple[str, str]:
    """The text without loss and the text with loss."""
    context, target = example.token_ids[: example.target_start], example.token_ids[example.target_start :]
    return TOKENIZER.decode(context), TOKENIZER.decode(target)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (CHOICE, (QUESTION, " positive")),
        (CompletionRecord("the film", "is good"), ("the film", " is good</s>")),
        (AnswerRecord("who?", ("the story", "a film")), ("who?", " the story</s>")),
    ],
)
def test_loss_is_on_the_answer_and_not_on_the_context(record: CompletionRecord, expected: tuple[str, str]) -> None:
    (example,) = encode_for_training([record], TOKENIZER, max_tokens=512)
    assert parts(example) == expected
    assert example.token_ids == tuple(TOKENIZER("".join(expected))["input_ids"])


@pytest.mark.parametrize(
    ("context", "target", "expected"),
    [
        ("a", "b", ("a", " b")),
        ("a ", "b", ("a", " b")),
        ("a\n", "b", ("a", "\nb")),
        ("a", "\nb", ("a", "\nb")),
        ("", "b", ("", "b")),
        (" ", "b", ("", " b")),
    ],
)
def test_white_space_between_context_and_target_goes_with_the_target(
    context: str, target: str, expected: tuple[str, str]
) -> None:
    assert continuation(context, target) == expected


def test_a_token_that_reaches_over_the_boundary_belongs_to_the_target() -> None:
    (example,) = encode_pairs([("the st", "ory")], TOKENIZER, max_tokens=512)
    assert parts(example) == ("the", " story")


TEXTS = st.text(max_size=40) | st.sampled_from([QUESTION, "the film is ", "the story"])


@settings(deadline=None)
@given(context=TEXTS, target=TEXTS.filter(str.strip), max_tokens=st.integers(2, 40))
def test_whatever_the_texts_the_end_of_the_whole_is_kept_and_the_context_is_cut_first(
    context: str, target: str, max_tokens: int
) -> None:
    pair = continuation(context, target)
    (full,) = encode_pairs([pair], TOKENIZER, max_tokens=100_000)
    (cut,) = encode_pairs([pair], TOKENIZER, max_tokens=max_tokens)
    target_ids = full.token_ids[full.target_start :]
    assert len(cut.token_ids) == min(len(full.token_ids), max_tokens)
    assert cut.token_ids[cut.target_start :] == target_ids[: max_tokens - 1]
    context_ids = full.token_ids[: full.target_start]
    assert cut.token_ids[: cut.target_start] == context_ids[-cut.target_start :]


def test_an_opening_token_stays_in_front_when_the_context_is_cut() -> None:
    tokenizer = opening_tokenizer()
    begin = tokenizer.bos_token_id
    pair = continuation(QUESTION, "positive")
    (full,) = encode_pairs([pair], tokenizer, max_tokens=512)
    (cut,) = encode_pairs([pair], tokenizer, max_tokens=4)
    assert full.token_ids == (begin, *TOKENIZER(QUESTION + " positive")["input_ids"])
    assert cut.token_ids == (begin, *TOKENIZER(" Answer: positive")["input_ids"])
    assert (full.target_start, cut.target_start) == (len(full.token_ids) - 1, 3)


def test_a_text_that_brings_its_own_opening_token_gets_no_second_one() -> None:
    (example,) = encode_pairs([("<s>the film", " is good")], opening_tokenizer(), max_tokens=512)
    assert example.token_ids == tuple(TOKENIZER("<s>the film is good")["input_ids"])


def test_an_empty_context_begins_with_the_begin_of_text_token() -> None:
    (example,) = encode_for_training([CompletionRecord("", "the film")], TOKENIZER, max_tokens=512)
    assert parts(example) == ("<s>", "the film</s>")


@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, opening_tokenizer])
def test_a_model_answers_after_the_tokens_it_was_trained_to_answer_after(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer()
    for context in (QUESTION, "the film is ", ""):
        (example,) = encode_pairs([continuation(context, "good")], tokenizer, max_tokens=6)
        (before,) = encode_contexts([context], tokenizer, max_tokens=max(example.target_start, 2))
        assert before == example.token_ids[: example.target_start]


def test_every_token_of_a_long_text_is_predicted_once() -> None:
    text = "the film is good and the story is true"
    whole = tuple(TOKENIZER(text + "</s>")["input_ids"])
    for max_tokens in range(2, len(whole) + 2):
        examples = encode_for_training([TextRecord(text)], TOKENIZER, max_tokens=max_tokens)
        assert all(len(example.token_ids) <= max_tokens and example.target_start == 1 for example in examples)
        predicted = [token for example in examples for token in example.token_ids[1:]]
        assert (examples[0].token_ids[0], *predicted) == whole


def test_empty_texts_give_no_example() -> None:
    assert len(encode_for_training([TextRecord(""), TextRecord("the film")], TOKENIZER, max_tokens=16)) == 1
    with pytest.raises(DataError, match="no text to train on"):
        encode_for_training([TextRecord("")], TOKENIZER, max_tokens=16)


def test_blocks_have_one_length_and_hold_the_joined_texts() -> None:
    records = [TextRecord("the film is good"), TextRecord("the story is true and false")]
    whole = tuple(TOKENIZER("the film is good</s>the story is true and false</s>")["input_ids"])
    blocks = text_blocks(records, TOKENIZER, block_tokens=4)
    assert [block.target_start for block in blocks] == [1] * len(blocks)
    assert [len(block.token_ids) for block in blocks] == [4] * (len(whole) // 4)
    assert sum((block.token_ids for block in blocks), ()) == whole[: len(whole) // 4 * 4]


def test_text_shorter_than_a_block_is_one_short_block() -> None:
    (block,) = text_blocks([TextRecord("the film")], TOKENIZER, block_tokens=100)
    assert block.token_ids == tuple(TOKENIZER("the film</s>")["input_ids"])


def test_every_block_begins_with_the_opening_token_of_the_tokenizer() -> None:
    tokenizer = opening_tokenizer()
    blocks = text_blocks([TextRecord("the film is good and the story is true")], tokenizer, block_tokens=4)
    assert len(blocks) > 1
    assert {(block.token_ids[0], len(block.token_ids)) for block in blocks} == {(tokenizer.bos_token_id, 4)}


def test_a_chat_trains_every_turn_of_the_assistant_and_nothing_else() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    first = "<system>be good</s><user>is it true?</s><assistant>"
    second = first + "it is true</s><user>is it false?</s><assistant>"
    examples = encode_for_training([CHAT], tokenizer, max_tokens=512)
    assert [parts(example) for example in examples] == [(first, "it is true</s>"), (second, "no</s>")]


def test_a_tokenizer_without_a_chat_template_gets_the_plain_one() -> None:
    first, second = encode_for_training([CHAT], TOKENIZER, max_tokens=512)
    assert parts(first) == ("system: be good\nuser: is it true?\nassistant:", " it is true</s>")
    assert parts(second)[1] == " no</s>"


def test_a_template_that_prompts_otherwise_than_it_writes_a_turn_still_trains_the_content() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    chat = ChatRecord((Message("assistant", "the film"), Message("user", "good?"), Message("assistant", " good ")))
    examples = encode_for_training([chat], tokenizer, max_tokens=512)
    assert [parts(example) for example in examples] == [
        ("[assistant]", "the film</s>"),
        ("[assistant]the film</s>[user]good?</s>[assistant]", "good</s>"),
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "refuses a conversation: no system role"),
        ("{{ messages[", "refuses a conversation"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}?", "changes what the assistant says"),
    ],
)
def test_a_template_that_cannot_write_the_chat_is_an_error_of_ours(template: str, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=message):
        encode_for_training([CHAT], tokenizer, max_tokens=512)


def test_a_batch_is_padded_on_the_right_and_has_labels_for_targets_only() -> None:
    examples = [EncodedExample((5, 6, 7, 8), 2), EncodedExample((9, 10), 1)]
    batch = collate(examples, 0, torch.device("cpu"))
    skip = IGNORED_LABEL
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 0, 0, 0, 0], [9, 10, 0, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[skip, skip, 7, 8] + [skip] * 4, [skip, 10] + [skip] * 6]


def test_examples_of_many_lengths_make_batches_of_few_shapes() -> None:
    shapes = {
        length: collate([EncodedExample(tuple(range(length)), 1)], 0, torch.device("cpu")).input_ids.shape
        for length in range(2, 65)
    }
    assert len(set(shapes.values())) == 8
    assert all(length <= shape[1] < length + 8 for length, shape in shapes.items())


@pytest.mark.parametrize(("token_ids", "target_start"), [((1, 2), 0), ((1, 2), 2), ((1,), 1), ((), 1)])
def test_an_example_without_context_or_target_cannot_be_made(token_ids: tuple[int, ...], target_start: int) -> None:
    with pytest.raises(ValueError, match="target_start"):
        EncodedExample(token_ids, target_start)


def test_too_small_a_room_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 tokens"):
        encode_for_training([CHOICE], TOKENIZER, max_tokens=1)
    with pytest.raises(DataError, match="at least 2 tokens"):
        encode_for_training([TextRecord("the film")], TOKENIZER, max_tokens=1)
    with pytest.raises(DataError, match="at least 2 tokens"):
        text_blocks([TextRecord("the film")], TOKENIZER, block_tokens=1)
    with pytest.raises(DataError, match="at least 1 tokens"):
        encode_contexts(["the film"], TOKENIZER, max_tokens=0)


def test_blocks_of_anything_but_text_are_refused() -> None:
    with pytest.raises(DataError, match="records of text"):
        text_blocks([TextRecord("the film"), CHOICE], TOKENIZER, block_tokens=8)
    with pytest.raises(DataError, match="expected at least 2"):
        text_blocks([TextRecord("")], TOKENIZER, block_tokens=8)


LONG = TextRecord("the film is good and the story is true. " * 8)


@pytest.mark.parametrize("record", [CHOICE, CHAT, LONG, CompletionRecord("the film", "is good"), TextRecord("no")])
def test_the_first_example_of_a_record_is_one_of_those_that_training_makes_of_it(record: object) -> None:
    every = encode_for_training([record], TOKENIZER, max_tokens=16)  # type: ignore[list-item]
    assert encode_first_examples([record], TOKENIZER, max_tokens=16) == every[:1]  # type: ignore[list-item]


def test_one_record_more_is_one_example_more_whatever_its_length() -> None:
    records = [CHOICE, TextRecord("the film"), CHAT]
    before = encode_first_examples(records, TOKENIZER, max_tokens=16)
    after = encode_first_examples([*records, LONG], TOKENIZER, max_tokens=16)
    assert len(before) == 3 and len(after) == 4 and set(before) < set(after)
    assert len(encode_for_training([LONG], TOKENIZER, max_tokens=16)) > 1


def template_that_minds(secret: str, refusal: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose chat template does what ``refusal`` says where a conversation holds the secret."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if '" + secret + "' in message['content'] %}" + refusal + "{% endif %}"
        "{{ message['content'] }}{% endfor %}"
    )
    return tokenizer


def picky_tokenizer(secret: str) -> PreTrainedTokenizerFast:
    """A tokenizer that finds nothing in a text with the secret, and so no token in it."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace(Regex(f".*{secret}.*"), "")
    return tokenizer


REFUSALS = (
    "{{ raise_exception('no') }}",  # a template's own word
    "{{ 1 // 0 }}",  # none of Jinja's errors
    "{{ 'a' + 1 }}",
    "{{ 'a' * 10 ** 15 }}",  # more than there is memory
    "{{ messages[99]['content'] }}",
)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_template_that_refuses_one_record_changes_neither_the_number_nor_the_others(refusal: str) -> None:
    tokenizer = template_that_minds("cancer", refusal)
    ill = ChatRecord((Message("user", "cancer?"), Message("assistant", "it is true")))
    well = ChatRecord((Message("user", "the film?"), Message("assistant", "it is good")))
    (alone,) = encode_first_examples([well], tokenizer, max_tokens=16)
    assert encode_first_examples([well, ill, well], tokenizer, max_tokens=16) == (alone, STAND_IN, alone)


def test_a_target_in_which_the_tokenizer_finds_nothing_still_counts() -> None:
    tokenizer = picky_tokenizer("cancer")
    records = [CompletionRecord("", "cancer"), CompletionRecord("the", "film")]
    tokenizer.eos_token = None
    first, second = encode_first_examples(records, tokenizer, max_tokens=16)
    assert first == STAND_IN != second


def test_records_of_nothing_count_and_take_the_same_stand_in() -> None:
    records = [TextRecord(""), TextRecord("the film"), TextRecord("")]
    (film,) = encode_first_examples([records[1]], TOKENIZER, max_tokens=16)
    assert encode_first_examples(records, TOKENIZER, max_tokens=16) == (STAND_IN, film, STAND_IN)


def test_a_record_with_a_token_that_the_model_lacks_takes_the_stand_in() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["cancer"])
    records = [TextRecord("cancer"), TextRecord("the film")]
    within = len(tokenizer) - 1
    first, second = encode_first_examples(records, tokenizer, max_tokens=16, vocabulary_size=within)
    assert first == STAND_IN != second
    assert STAND_IN not in encode_first_examples(records, tokenizer, max_tokens=16, vocabulary_size=within + 1)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=80), st.integers(2, 16))
@settings(max_examples=25, deadline=None)
def test_each_text_is_one_example_in_the_order_of_the_records(texts: list[str], max_tokens: int) -> None:
    records = [TextRecord(text) for text in texts]
    alone = [encode_first_examples([record], TOKENIZER, max_tokens=max_tokens)[0] for record in records]
    assert list(encode_first_examples(records, TOKENIZER, max_tokens=max_tokens)) == alone


def test_no_record_and_no_room_have_no_first_example() -> None:
    with pytest.raises(DataError, match="no text to train on"):
        encode_first_examples([], TOKENIZER, max_tokens=16)
    with pytest.raises(DataError, match="at least 2 tokens"):
        encode_first_examples([TextRecord("the film")], TOKENIZER, max_tokens=1)
