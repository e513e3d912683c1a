"""Chats as text: the tokenizer's own chat template, or a plain one."""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from scaleot_core.errors import DataError
from scaleot_core.training.records import ChatRecord

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""The chat template of a tokenizer that brings none: ``role: content`` on each line."""


def chat_pairs(record: ChatRecord, tokenizer: PreTrainedTokenizerFast) -> tuple[tuple[str, str], ...]:
    """Returns, for each turn of the assistant, the conversation so far and what the assistant says, by the template.

    The template's prompt for an answer belongs to the conversation so far. Where a template writes that prompt
    otherwise than the turn it prompts for, the conversation ends where the turn's content begins.

    Raises:
        DataError: the template refuses the conversation, or changes what the assistant said.
    """
    messages = [{"role": message.role, "content": message.content} for message in record.messages]
    pairs = []
    for turn, message in enumerate(record.messages):
        if message.role != "assistant":
            continue
        context = _render(messages[:turn], tokenizer, asks=True) if turn else ""
        whole = _render(messages[: turn + 1], tokenizer, asks=False).rstrip()
        if not turn or not whole.startswith(context):
            start = whole.rfind(message.content.strip())
            if start < 0:
                raise DataError(f"the tokenizer's chat template changes what the assistant says in turn {turn + 1}")
            context = whole[:start]
        pairs.append((context, whole[len(context) :]))
    return tuple(pairs)


def _render(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, *, asks: bool) -> str:
    template = tokenizer.chat_template or PLAIN_CHAT_TEMPLATE
    try:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=asks)
        )
    except (TemplateError, ValueError) as error:
        raise DataError(f"the tokenizer's chat template refuses a conversation: {error}") from error
