"""The GPUs that kernels are compiled for: their limits, and the instructions that each kernel must use there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU's limits, from NVIDIA's occupancy tables and AMD's CDNA 3 manual. A multiprocessor is an SM or a CU."""

    name: str
    backend: str
    arch: int | str
    num_sms: int
    shared_block: int  # bytes of shared memory a block may have
    shared: int  # and a multiprocessor has
    warps: int  # a multiprocessor holds
    warp_size: int = 32
    tensor_memory: int = 0  # columns

    @property
    def capability(self) -> tuple[int, int]:
        return divmod(self.arch, 10) if self.backend == "cuda" else (9, 4)


PARTITIONS = 4
"""Partitions of every multiprocessor here; each has 512 registers per lane, allocated in units of eight."""

KIB = 1024
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 108, 163 * KIB, 164 * KIB, 64),
        Target("sm_90", "cuda", 90, 132, 227 * KIB, 228 * KIB, 64),
        Target("sm_100", "cuda", 100, 148, 227 * KIB, 228 * KIB, 64, tensor_memory=512),
        Target("gfx942", "hip", "gfx942", 304, 64 * KIB, 64 * KIB, 32, 64),
    )
}

TILES = {"sm_80": "HMMA LDGSTS", "sm_90": "HGMMA LDGSTS", "sm_100": "UTCMMA LDGSTS", "gfx942": "MFMA"}
"""Large tiles: the target's widest tensor-core instruction, with operands that bypass registers where Triton can."""

WARPS = {"sm_80": "HMMA LDGSTS", "sm_90": "HMMA LDGSTS", "sm_100": "HMMA LDGSTS", "gfx942": "MFMA"}
"""Tiles of 16 rows, and float64: instructions of one warp, since wider ones need 64 rows and do not support float64."""

COPIED = {"sm_80": "", "sm_90": "HGMMA TMA", "sm_100": "UTCMMA TMA", "gfx942": ""}
"""Large tiles of kernels that run only on GPUs with TMA."""

ADDS = dict.fromkeys(TARGETS, "")
"""Kernels without matrix products."""

EXPECTED: dict[str, dict[int, dict[str, str]]] = {
    "gram_kernel": {16: TILES, 32: TILES, 64: WARPS},
    "gram_tma_kernel": {16: COPIED, 32: COPIED},
    "split_terms_kernel": {16: ADDS, 32: ADDS},
    "split_k_reduce_kernel": {16: ADDS, 32: ADDS, 64: ADDS},
    "grouped_kernel": {16: COPIED},
    "matmul_kernel": {16: TILES, 32: TILES, 64: WARPS},
    "matmul_kernel M16": {16: WARPS, 32: WARPS},
    "summed_matmul_kernel": {16: TILES, 32: TILES, 64: WARPS},
    "summed_matmul_kernel M16": {16: WARPS, 32: WARPS},
    "scatter_matmul_kernel": {16: TILES, 32: TILES, 64: WARPS},
    "scatter_matmul_kernel M16": {16: WARPS, 32: WARPS},
    "swiglu_kernel": {16: TILES, 32: TILES, 64: WARPS},
    "swiglu_kernel M16": {16: WARPS, 32: WARPS},
    "population_kernel": {16: TILES, 32: TILES, 64: WARPS},
    "population_kernel M16": {16: WARPS, 32: WARPS},
    "quantized_kernel": {16: TILES, 32: TILES},
    "quantized_kernel M16": {16: WARPS, 32: WARPS},
    "quantized_kernel M32": {32: WARPS},
    "gemv_kernel T1": {16: ADDS},
    "gemv_kernel T16": {16: WARPS},
    "integers_gemv_kernel": {16: ADDS},
    "gemv_glu_kernel T1": {16: ADDS},
    "gemv_glu_kernel T16": {16: WARPS},
    "fused_kernel": {16: TILES, 32: TILES},
    "rms_norm_kernel": {16: ADDS, 32: ADDS, 64: ADDS},
    "rotary_kernel": {16: ADDS, 32: ADDS, 64: ADDS},
    "act_mul_kernel": {16: ADDS, 32: ADDS},
    "gather_columns_kernel": {16: ADDS, 32: ADDS},
    "join_columns_kernel": {16: ADDS, 32: ADDS},
    "expand_kernel": {16: ADDS, 32: ADDS},
    "act_mul_backward_kernel": {16: ADDS, 32: ADDS},
}
"""Instruction classes by kernel (the longest name that begins "kernel tile" counts), bits of the dtype, and target."""


def faults(row: dict) -> list[str]:
    """The faults of a row of the table, in words."""
    target = TARGETS[row["target"]]
    found = []
    if row["spills"] or "LOCAL" in row["instructions"]:
        found.append(f"spills: {row['spills']} bytes, {row['instructions'].get('LOCAL', 0)} instructions")
    if row["shared"] > target.shared_block:
        found.append(f"needs {row['shared']} bytes of shared memory, {target.name} has {target.shared_block}")
    if not row["occupancy"]:
        found.append("no block fits on a processor")
    bits = {"float64": 64, "float32": 32}.get(row["dtype"], 16)
    names = [name for name in EXPECTED if f"{row['kernel']} {row['tile']} ".startswith(f"{name} ")]
    if not names:
        return [*found, f"{row['kernel']} is not in EXPECTED"]
    wanted = set(EXPECTED[max(names, key=len)][bits][target.name].split())
    if row["tile"].endswith("TMA"):
        wanted = {"TMA" if name == "LDGSTS" else name for name in wanted}
    if bits == 16 and row["shape"] in ("ragged", "small"):
        wanted.discard("LDGSTS")  # copies at least four bytes, which Triton must know to be aligned
    missing = wanted - set(row["instructions"])
    return found + ([f"without {', '.join(sorted(missing))}"] if missing else [])
