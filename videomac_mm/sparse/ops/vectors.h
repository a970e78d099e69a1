// Vectors of GCC and clang, as wide as the processor's registers, and what all kernels share.
//
// Rows are sites; channels are contiguous and a multiple of 8. Every result is written by one
// thread in a fixed order.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

using Index = std::int64_t;

template <int N>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * N)));
  typedef std::int32_t bits __attribute__((vector_size(4 * N)));
};

// GCC handles vectors that are wider than the registers by a detour through memory.
#if defined(__AVX512F__)
constexpr int kWidest = 16, kNarrowest = 8, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kWidest = 8, kNarrowest = 8, kRegisters = 16;
#else
constexpr int kWidest = 4, kNarrowest = 4, kRegisters = 16;
#endif

typedef Lanes<kWidest> Wide;
typedef Lanes<kNarrowest> Narrow;

template <class V>
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));  // memory need not be aligned
  return v;
}

template <class V>
inline void store(float* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

template <class V>
constexpr Index lanes_of() {
  return sizeof(V) / sizeof(float);
}

// Calls body with the widest vectors that divide the channels.
template <class Body>
inline void pick(Index channels, Body body) {
  if (channels % kWidest == 0)
    body(Wide{});
  else
    body(Narrow{});
}

// Sums of many rows: float in blocks of kBlock rows, double across blocks. The rounding error
// then does not grow with the number of rows.
constexpr Index kBlock = 32;

inline void flush(float* block, double* sums, Index number) {
  for (Index c = 0; c < number; ++c) {
    sums[c] += block[c];
    block[c] = 0;
  }
}

// Whether all numbers of a table are tiles, or -1 for none.
inline bool are_tiles(const std::int32_t* table, Index size, Index tiles) {
  std::int32_t least = -1, most = -1;
  for (Index k = 0; k < size; ++k) {
    least = std::min(least, table[k]);
    most = std::max(most, table[k]);
  }
  return least == -1 && most < tiles;
}
