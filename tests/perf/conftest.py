"""Kernel tables of an engine that obeys a law exactly."""

from pathlib import Path

import pytest

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CHUNKS = (1, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)


@pytest.fixture
def kernel_tables(tmp_path: Path) -> Path:
    """A folder of them: 4 ms of weights, 18 us a token, 6 us a decode, 30 ns a KV token, 350 ps an attention pair, 0.3 ms for the
    LM head and 0.4 ms to launch attention."""
    gemm = [f"{n},{max(4.0, 0.018 * n):.6f},0.3" for n in (1, 2, 4, *range(8, 300, 24), 512, 1024, 2048, 4096, 8192)]
    decode = [
        f"{b},{c},{0.4 + 0.006 * b + 3e-5 * b * c:.6f}" for b in BATCHES for c in (16, 256, 1024, 4096) if b * c < 8e5
    ]
    prefill = [f"{b},{c},0,{0.4 + 3.5e-7 * b * c * c:.6f}" for b in (1, 2, 4, 8) for c in CHUNKS]
    folder = tmp_path / "tables"
    folder.mkdir()
    prefix = "llama-3.1-8b-h200-tp1"
    for table, columns, rows in (
        ("gemm", "tokens,layers_gemm_ms,lm_head_ms", gemm),
        ("decode-attention", "batch_size,context,attention_ms", decode),
        ("prefill-attention", "batch_size,chunk,prefix,attention_ms", prefill),
    ):
        (folder / f"{prefix}-{table}.csv").write_text("\n".join([columns, *rows, ""]))
    return folder
