"""How many tokens a conversation has, by the tokenizer alone: nothing heavy is loaded for it."""

from collections.abc import Sequence
from pathlib import Path

from yi_tune.data.identity import Message
from yi_tune.errors import YiTuneError

TOKENIZER = "tokenizer.json"


def count_tokens(model: Path, conversations: Sequence[list[Message]]) -> list[int]:
    """Tokens of each conversation in Yi's format; bytes, which are more, where `model` has no tokenizer to count with.

    Raises YiTuneError for a tokenizer that does not load.
    """
    texts = [
        "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
        for messages in conversations
    ]
    file = model / TOKENIZER
    if not file.is_file():
        return [len(text.encode()) for text in texts]
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more precise
        raise YiTuneError(f"The tokenizer {file} does not load: {error}", "Fetch or copy that file anew.") from error
    return [len(encoding) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
