// Common to the tile-matrix (Intel AMX) kernels. A tile register holds 16 rows of 64 bytes; one instruction adds to a
// 16×16 float32 tile the product of 16×32 bf16 (rows of the left matrix) and 32×16 bf16, the right matrix, whose rows
// come in pairs: the dword at [p][j] holds elements (2p, j) and (2p+1, j). Comments call this form "pairs".
#pragma once

#include "cpu_features.h"

#ifdef SIEVE_AMX
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "target.h"

// From here to the TARGET_END of the including file, functions are compiled for processors with AMX: call them only
// where `isa_in_use` is AMX.
TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")
#include "avx512.h"

namespace sieve {

constexpr int TILE = 16;   // rows of a tile, and float32 columns
constexpr int DEPTH = 32;  // bf16 elements of a tile row: the step along the summed dimension
constexpr int TILE_BYTES = 1024;

// Configures all eight tile registers at full size for its lifetime. Every thread needs one of its own.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

}  // namespace sieve
#endif
