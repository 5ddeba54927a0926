"""The emulator's tokenizer: a token is four bytes of UTF-8. Used to count prompts and to write answers.

Four, because real tokenizers make about that of English, and because the word `tok` with a space is four bytes: a prompt of exactly N
tokens is `"tok " * N`, and the answer of N tokens, sent back as a prompt, counts N.
"""

TOKEN_BYTES = 4

CHAT_TOKENS = 4
"""What the chat template adds once (begin of text, header of the reply)..."""
MESSAGE_TOKENS = 4
"""...and for each message (its header and its end)."""

_STORY = (
    "the sun has set and one old man can see how far the sea may run for the day was hot but now the air let him "
    "nap any way you put his hat was not big nor red yet all who met him got out its new toy car for fun too"
)
WORDS = tuple(word + " " for word in _STORY.split(" "))
"""Each token of an answer is one of these: always four bytes, so that a chunk's length does not depend on its token."""


def count_tokens(text: str) -> int:
    """Tokens of a text; an empty one has one (the begin of text)."""
    return max(1, -(-len(text.encode()) // TOKEN_BYTES))


def tokens_of(text: str) -> list[int]:
    """Token ids of a text: its bytes, four at a time, as big-endian numbers, so that `text_of` is the inverse."""
    data = text.encode()
    return [int.from_bytes(data[i : i + TOKEN_BYTES], "big") for i in range(0, len(data), TOKEN_BYTES)]


def text_of(tokens: list[int]) -> str:
    """The text of token ids; bytes that are no UTF-8 become replacement characters, as in a real tokenizer."""
    data = b"".join(token.to_bytes(max(1, -(-token.bit_length() // 8)), "big") for token in tokens)
    return data.decode("utf-8", "replace")


def answer(first: int, tokens: int) -> str:
    """The words of an answer: tokens `first` to `first + tokens - 1`."""
    return "".join([WORDS[i % len(WORDS)] for i in range(first, first + tokens)])
