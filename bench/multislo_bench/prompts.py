"""Prompts of an exact number of tokens, and the request bodies around them. Each begins somewhere else in one long random text,
so that no two share a prefix that an engine could have cached."""

import json
from dataclasses import dataclass
from random import Random

# Common English words of four letters: with the blank before it each is one token in the usual BPE vocabularies, and the
# emulator counts words. All of one width, so that N words are a slice of 5*N bytes.
WORDS = (
    b"able area army away back ball bank base bird blue boat body book both call came card care case cent city club cold "
    b"come cost dark data date days dead deal dear deep does done door down draw drop each east easy edge else even ever "
    b"face fact fall farm fast fear feel feet fell felt file find fine fire fish five food foot form four free from full "
    b"game gave girl give goal gold gone good gray grew hair half hall hand hard have head hear heat held help here high "
    b"hold home hope hour huge idea inch iron just keep kept kind king knew know lady lake land last late lead left less "
    b"life lift like line list live long look lost love made main make many mark mean meet mile mind miss moon more most "
    b"move much must name near need news next nice nine note once only open over page paid park part pass past path plan "
    b"play poor pull race rain read real rest rice rich ride ring rise road rock role room rose rule safe said sail salt "
    b"same sand save seem seen sell send sent ship shop show side sign size skin snow soft soil some song soon sort star "
    b"stay step stop such sure take talk tall team tell term test than that them then they thin this thus time tiny told "
    b"took town tree trip true turn type unit upon vast very view vote wait walk wall want warm wash wave week well went "
    b"west what when wide wife wild will wind wine wing wire wise wish with wood word work year"
).split()
WIDTH = 5
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
        # The last character is a separator: N words of five bytes, less one.
        prompt = self.text[start : start + prompt_tokens * WIDTH - 1]
        return b"%b%b%b%d}" % (self.head, prompt, self.tail, output_tokens)


def prompts(model: str, chat: bool, as_ids: bool, tokens_max: int, seed: int) -> Prompts:
    """Bodies for `/v1/chat/completions` or `/v1/completions`, with prompts of up to `tokens_max` tokens."""
    dice = Random(seed)
    count = STARTS + tokens_max
    if as_ids:
        text = b"".join(b"%d," % number for number in dice.choices(range(1000, 10_000), k=count))
    else:
        text = b" ".join(dice.choices(WORDS, k=count))
    start, end = (b"[", b"]") if as_ids else (b'"', b'"')
    if chat:
        start, end = b'[{"role":"user","content":"', b'"}]'
    head = b'{"model":%b,"%b":%b' % (json.dumps(model).encode(), b"messages" if chat else b"prompt", start)
    tail = end + b',"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"max_tokens":'
    return Prompts(head, tail, text, dice)
