"""The latency law of an 8B model on one H200, rounded: what tests of the router and of the engine model go by."""

from multislo_perf.latency import LatencyModel

LAW = LatencyModel(
    fixed_s=1.64e-3,
    weights_s=3.88e-3,
    weights_per_token_s=5.43e-6,
    gemm_s=0.06e-3,
    gemm_per_token_s=17.64e-6,
    per_decode_s=5.28e-6,
    per_kv_token_s=2.971e-8,
    per_chunk_token_s=3.75e-7,
    per_attention_pair_s=3.87e-10,
)
