"""Prompts of an exact number of tokens, and the request bodies around them. Each begins at another place of one long random text, so
that no two share a prefix that an engine could cache."""

import json
from dataclasses import dataclass
from random import Random

# Common English words of three letters: with the blank before it each is one token in the usual BPE vocabularies, and the
# emulator's tokens are four bytes. All of one width, so that N tokens are a slice of the text.
WORDS = (
    b"act add age ago aid aim air all and any are arm art ask bad bag bar bat bay bed bet big bit box boy bus but "
    b"buy can cap car cat cow cry cup cut dad day did die dog dry due ear eat egg end eye far fat few fit fix fly "
    b"for fun gas get got gun guy had has hat her hey him his hit hot how ice its job joy key kid law lay leg let "
    b"lie lot low man map may men met mix mom mud net new nor not now odd off oil old one our out own pay pen per "
    b"pet pie put ran raw red rid row run sad sat saw say sea see set she sir sit six sky son sun tax tea ten the "
    b"tie too top toy try two use van war was way wet who why win won yes yet you"
).split()
WIDTH = 4
# Starts to choose from; with 65,536 of them two of 1,000 prompts begin alike about 7 times, and most of those in no common
# time. More would only cost memory.
STARTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes bodies for one endpoint. `as_ids`: the prompt is a list of token ids, exact on every engine that takes them."""

    head: bytes
    tail: bytes
    text: bytes
    dice: Random

    def body(self, prompt_tokens: int, output_tokens: int) -> bytes:
        """The JSON body that asks for exactly `output_tokens` after a prompt of exactly `prompt_tokens`."""
        start = self.dice.randrange(STARTS) * WIDTH
        # The last character is a separator.
        prompt = self.text[start : start + prompt_tokens * WIDTH - 1]
        return b"%b%b%b%d}" % (self.head, prompt, self.tail, output_tokens)


def prompts(model: str, chat: bool, as_ids: bool, tokens_max: int, seed: int) -> Prompts:
    """Bodies for `/v1/chat/completions` or `/v1/completions`, with prompts of up to `tokens_max` tokens."""
    dice = Random(seed)
    count = STARTS + tokens_max
    if as_ids:
        text = b"".join(b"%d," % number for number in dice.choices(range(100, 1000), k=count))
    else:
        text = b" ".join(dice.choices(WORDS, k=count))
    start, end = (b"[", b"]") if as_ids else (b'"', b'"')
    if chat:
        start, end = b'[{"role":"user","content":"', b'"}]'
    head = b'{"model":%b,"%b":%b' % (json.dumps(model).encode(), b"messages" if chat else b"prompt", start)
    tail = end + b',"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"max_tokens":'
    return Prompts(head, tail, text, dice)
