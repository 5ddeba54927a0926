"""Measured kernel times (the CSV files of `multislo profile fit --sources`) and whole iterations composed of them, to which the
latency model is fitted. Called by `fit`."""

import csv
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from multislo_perf.profile import ProfileInvalid, Range, ValidRanges

Floats = npt.NDArray[np.float64]

GEMM_COLUMNS = ("tokens", "layers_gemm_ms", "lm_head_ms")
DECODE_COLUMNS = ("batch_size", "context", "attention_ms")
PREFILL_COLUMNS = ("batch_size", "chunk", "prefix", "attention_ms")

# A chunk of a few tokens is a decode to the engine, and hundreds of prompts in one iteration of a few thousand tokens are none
# that users send.
CHUNK_TOKENS_MIN = 16
PROMPTS_MAX = 16
DECODES_MAX = 1024
CONTINUED_CHUNKS = (128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class KernelTables:
    """Times in ms, all layers together. Rows ascend as the files give them.

    gemm: tokens, GEMMs of the layers, LM head for that many rows. decode: batch, context of each, attention.
    prefill: batch, chunk, attention (of whole prompts: nothing of them in the cache).
    """

    gemm: Floats
    decode: Floats
    prefill: Floats

    def gemm_ms(self, tokens: float) -> float:
        return float(np.interp(tokens, self.gemm[:, 0], self.gemm[:, 1]))

    def lm_head_ms(self, rows: float) -> float:
        return float(np.interp(rows, self.gemm[:, 0], self.gemm[:, 2]))

    def prompt_attention_ms(self, tokens: float) -> float:
        """Of one whole prompt. Grows with the square of its tokens, so what is interpolated between two measured prompts is the
        time a token: straight lines through the time itself would make a chunk at the end of a prompt look a quarter too cheap."""
        alone = self.prefill[self.prefill[:, 0] == 1]
        floor = self.attention_floor_ms
        per_token = np.interp(tokens, alone[:, 1], (alone[:, 2] - floor) / alone[:, 1])
        return float(floor + tokens * per_token)

    @property
    def attention_floor_ms(self) -> float:
        """What attention takes with next to nothing to attend to: launching one kernel a layer."""
        return float(min(self.decode[:, 2].min(), self.prefill[:, 2].min()))


@dataclass(frozen=True, slots=True)
class Iterations:
    """Whole iterations, an entry each: tokens of their chunks, attention pairs of those, decodes, KV tokens of these, ms."""

    groups: list[str]
    chunk_tokens: Floats
    pairs: Floats
    decodes: Floats
    kv_tokens: Floats
    measured_ms: Floats

    def __len__(self) -> int:
        return len(self.groups)


def read_tables(folder: Path, prefix: str) -> KernelTables:
    """The three tables `PREFIX-gemm.csv`, `PREFIX-decode-attention.csv`, `PREFIX-prefill-attention.csv`. Raises ProfileInvalid."""
    problems: list[str] = []
    gemm = _read(folder / f"{prefix}-gemm.csv", GEMM_COLUMNS, problems)
    decode = _read(folder / f"{prefix}-decode-attention.csv", DECODE_COLUMNS, problems)
    prefill = _read(folder / f"{prefix}-prefill-attention.csv", PREFILL_COLUMNS, problems)
    if not problems and not (prefill[:, 0] == 1).any():
        problems.append(f"{prefix}-prefill-attention.csv: must have rows of batch_size 1")
    if not problems and (prefill[:, 2] != 0).any():
        problems.append(f"{prefix}-prefill-attention.csv: prefix must be 0 in every row; longer ones are composed")
    if problems:
        raise ProfileInvalid(str(folder), problems)
    return KernelTables(gemm[np.argsort(gemm[:, 0])], decode, prefill[:, [0, 1, 3]])


def _read(path: Path, columns: tuple[str, ...], problems: list[str]) -> Floats:
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != columns:
                problems.append(f"{path.name}: the columns must be {','.join(columns)}")
                return np.empty((0, len(columns)))
            for row in reader:
                try:
                    numbers = [float(row[column]) for column in columns]
                except (TypeError, ValueError):
                    problems.append(f"{path.name}: line {reader.line_num}: must have a number in every column")
                    continue
                if min(numbers) < 0 or numbers[0] < 1 or not np.isfinite(numbers).all():
                    problems.append(
                        f"{path.name}: line {reader.line_num}: {columns[0]} must be at least 1, nothing negative"
                    )
                rows.append(numbers)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name}: cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(rows) < 8 and not problems:
        problems.append(f"{path.name}: must have at least 8 rows, has {len(rows)}")
    return np.array(rows).reshape(-1, len(columns))


def held_out(tables: KernelTables, share: float, dice: Random) -> tuple[KernelTables, KernelTables]:
    """Splits the measured rows: those to fit to, and those held out.

    What is interpolated keeps its ends in the fit. The held-out tables have all GEMM rows and whole prompts to interpolate in:
    they are the truth that the law, fitted without a share of them, is to be compared with.
    """
    gemm = _drawn(tables.gemm, share, dice, keep={0, len(tables.gemm) - 1})
    decode = _drawn(tables.decode, share, dice, keep=set())
    alone = np.flatnonzero(tables.prefill[:, 0] == 1)
    prefill = _drawn(tables.prefill, share, dice, keep={int(alone[0]), int(alone[-1])})
    fit = KernelTables(tables.gemm[~gemm], tables.decode[~decode], tables.prefill[~prefill])
    return fit, KernelTables(tables.gemm, tables.decode[decode], tables.prefill[prefill])


def _drawn(rows: Floats, share: float, dice: Random, keep: set[int]) -> npt.NDArray[np.bool_]:
    drawn = np.zeros(len(rows), dtype=np.bool_)
    drawn[dice.sample([row for row in range(len(rows)) if row not in keep], int(len(rows) * share))] = True
    return drawn


def ranges(tables: KernelTables, tokens_max: int, kv_tokens_max: int) -> ValidRanges:
    """What iterations are composed of."""
    return ValidRanges(
        tokens=Range(min=1, max=tokens_max),
        decodes=Range(min=0, max=min(DECODES_MAX, int(tables.decode[:, 0].max()))),
        kv_tokens=Range(min=0, max=kv_tokens_max),
        context_tokens=Range(min=int(tables.decode[:, 1].min()), max=int(tables.decode[:, 1].max())),
        prompts=Range(min=0, max=PROMPTS_MAX),
        chunk_tokens=Range(min=CHUNK_TOKENS_MIN, max=tokens_max),
        prompt_tokens=Range(min=CHUNK_TOKENS_MIN, max=int(tables.prefill[tables.prefill[:, 0] == 1, 1].max())),
    )


def compose(tables: KernelTables, whole: KernelTables, valid: ValidRanges, mixed: int, dice: Random) -> Iterations:
    """Whole iterations of the rows in `tables`: every pure decode batch, every batch of whole prompts, and `mixed` each of random
    decode batches beside random whole prompts and beside a chunk that continues a prompt.

    GEMMs and LM head are interpolated at the iteration's tokens and sampled rows; attention adds up over the requests, but for
    the launch floor, which is paid once: one kernel a layer attends for the whole batch. A chunk behind `p` tokens of its prompt
    costs what the prompt of p + c tokens costs more than that of p, in `whole`.
    """
    floor = whole.attention_floor_ms
    decodes = [
        (int(batch), int(batch * context), float(ms))
        for batch, context, ms in tables.decode
        if batch <= valid.decodes.max and batch * context <= valid.kv_tokens.max
    ]
    prompts = [
        (int(batch), int(chunk), float(ms))
        for batch, chunk, ms in tables.prefill
        if batch <= valid.prompts.max and chunk >= valid.chunk_tokens.min and batch * chunk <= valid.tokens.max
    ]
    ends = [int(chunk) for _, chunk, _ in tables.prefill if min(CONTINUED_CHUNKS) < chunk <= valid.prompt_tokens.max]
    if not (decodes and prompts and ends):
        raise ProfileInvalid(
            "kernel tables", [f"no rows within {valid.tokens.max} tokens and {valid.kv_tokens.max} KV tokens"]
        )
    rows: list[tuple[str, int, int, int, int, float]] = []

    def add(group: str, chunks: int, tokens: int, pairs: int, batch: int, kv: int, attention_ms: float) -> bool:
        if tokens + batch > valid.tokens.max:
            return False
        ms = tables.gemm_ms(tokens + batch) + tables.lm_head_ms(chunks + batch) + attention_ms
        rows.append((group, tokens, pairs, batch, kv, ms))
        return True

    for batch, kv, ms in decodes:
        add("decode", 0, 0, 0, batch, kv, ms)
    for count, chunk, ms in prompts:
        add("prefill", count, count * chunk, count * chunk * chunk, 0, 0, ms)
    left = mixed
    while left:
        batch, kv, decode_ms = dice.choice(decodes)
        count, chunk, prefill_ms = dice.choice(prompts)
        left -= add("mixed", count, count * chunk, count * chunk * chunk, batch, kv, decode_ms + prefill_ms - floor)
    left = mixed
    while left:
        batch, kv, decode_ms = dice.choice(decodes)
        end, chunk = dice.choice(ends), dice.choice(CONTINUED_CHUNKS)
        if chunk < end:
            behind = end - chunk
            prefill_ms = whole.prompt_attention_ms(end) - whole.prompt_attention_ms(behind)
            left -= add("continued", 1, chunk, end * end - behind * behind, batch, kv, decode_ms + prefill_ms)
    table = np.array([row[1:] for row in rows], dtype=np.float64)
    return Iterations([row[0] for row in rows], table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4])
