"""Data for training and evaluation: read it, split it among clients, turn it into token ids.

``read_records`` -> ``few_shot`` -> ``partition_records`` -> ``encode_for_training`` or ``text_blocks`` -> ``collate``.
"""

from scaleot_core.training.encoding import (
    IGNORED_LABEL,
    STAND_IN,
    Batch,
    EncodedExample,
    collate,
    encode_first_examples,
    encode_for_training,
    text_blocks,
)
from scaleot_core.training.few_shot import few_shot
from scaleot_core.training.partition import PartitionMethod, partition_records
from scaleot_core.training.records import (
    AnswerRecord,
    ChatRecord,
    ChoiceRecord,
    CompletionRecord,
    Message,
    Record,
    TextRecord,
    read_records,
    write_records,
)

__all__ = [
    "IGNORED_LABEL",
    "STAND_IN",
    "AnswerRecord",
    "Batch",
    "ChatRecord",
    "ChoiceRecord",
    "CompletionRecord",
    "EncodedExample",
    "Message",
    "PartitionMethod",
    "Record",
    "TextRecord",
    "collate",
    "encode_first_examples",
    "encode_for_training",
    "few_shot",
    "partition_records",
    "read_records",
    "text_blocks",
    "write_records",
]
