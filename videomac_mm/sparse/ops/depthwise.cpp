// Depth-wise 7x7 convs straight from packed tiles, and the gradient of their weight.
//
// A kernel is 49 taps, row by row, and the bias: 50 rows of channels. `near` holds for every tile
// the tiles around it, -1 for none.

#include "vectors.h"

namespace {

constexpr int kSide = 7, kReach = kSide / 2, kTaps = kSide * kSide;

// Whether the window around column x of a tile covers column y of the tile `apart` further on.
template <int P, int apart>
constexpr bool covers(int x, int y) {
  return apart * P + y - x <= kReach && x - apart * P - y <= kReach;
}

// A row of sites of one tile seen by a row of windows of another.
template <int P, int apart, class V>
inline void convolve_row(V* out, const float* in, const float* weight, Index channels) {
  V taps[kSide];
#pragma GCC unroll 8
  for (int k = 0; k < kSide; ++k) taps[k] = load<V>(weight + k * channels);
#pragma GCC unroll 8
  for (int y = 0; y < P; ++y) {
    const V value = load<V>(in + y * channels);
#pragma GCC unroll 8
    for (int x = 0; x < P; ++x)
      if (covers<P, apart>(x, y)) out[x] += taps[apart * P + y - x + kReach] * value;
  }
}

// The same pairs of sites, for the gradient of the weight.
template <int P, int apart, class V>
inline void correlate_row(V* sums, const float* in, const V* grad, Index channels) {
#pragma GCC unroll 8
  for (int y = 0; y < P; ++y) {
    const V value = load<V>(in + y * channels);
#pragma GCC unroll 8
    for (int x = 0; x < P; ++x)
      if (covers<P, apart>(x, y)) sums[apart * P + y - x + kReach] += grad[x] * value;
  }
}

// Calls visit(first of a row of taps, first site of a row, tiles to the right) for each row of
// sites that windows of row `row` of a tile see.
template <int P, class Visit>
inline void look_around(const std::int32_t* near, int row, Visit visit) {
  constexpr int reach = (kReach + P - 1) / P, across = 2 * reach + 1;
  for (int down = -reach; down <= reach; ++down)
    for (int y = 0; y < P; ++y) {
      const int tap = down * P + y - row + kReach;
      if (tap < 0 || tap >= kSide) continue;
      for (int right = -reach; right <= reach; ++right) {
        const Index tile = near[(down + reach) * across + right + reach];
        if (tile >= 0) visit(tap * kSide, (tile * P + y) * P, right);
      }
    }
}

template <int P, class V>
void convolve_tile(const float* in, const float* taps, const std::int32_t* near, float* out,
                   Index channels) {
  constexpr int step = lanes_of<V>();
  for (Index c = 0; c < channels; c += step)
    for (int y = 0; y < P; ++y) {
      V sums[P];
      for (int k = 0; k < P; ++k) sums[k] = load<V>(taps + kTaps * channels + c);
      look_around<P>(near, y, [&](int tap, Index site, int right) {
        const float *from = in + site * channels + c, *row = taps + tap * channels + c;
        switch (right) {
          case -3: return convolve_row<P, -3>(sums, from, row, channels);
          case -2: return convolve_row<P, -2>(sums, from, row, channels);
          case -1: return convolve_row<P, -1>(sums, from, row, channels);
          case 0: return convolve_row<P, 0>(sums, from, row, channels);
          case 1: return convolve_row<P, 1>(sums, from, row, channels);
          case 2: return convolve_row<P, 2>(sums, from, row, channels);
          case 3: return convolve_row<P, 3>(sums, from, row, channels);
        }
      });
      for (int k = 0; k < P; ++k) store(out + (y * P + k) * channels + c, sums[k]);
    }
}

// Adds a tile's share to sums (kTaps + 1 vectors): of the weight, and of the bias.
template <int P, class V>
void correlate_tile(const float* in, const float* grad, const std::int32_t* near, V* sums,
                    Index channels) {
  for (int y = 0; y < P; ++y) {
    V row[P];
    for (int k = 0; k < P; ++k) {
      row[k] = load<V>(grad + (y * P + k) * channels);
      sums[kTaps] += row[k];
    }
    look_around<P>(near, y, [&](int tap, Index site, int right) {
      const float* from = in + site * channels;
      V* into = sums + tap;
      switch (right) {
        case -3: return correlate_row<P, -3>(into, from, row, channels);
        case -2: return correlate_row<P, -2>(into, from, row, channels);
        case -1: return correlate_row<P, -1>(into, from, row, channels);
        case 0: return correlate_row<P, 0>(into, from, row, channels);
        case 1: return correlate_row<P, 1>(into, from, row, channels);
        case 2: return correlate_row<P, 2>(into, from, row, channels);
        case 3: return correlate_row<P, 3>(into, from, row, channels);
      }
    });
  }
}

constexpr int neighbours_of(int side) {
  const int across = 2 * ((kReach + side - 1) / side) + 1;
  return across * across;
}

template <int P, class V>
void convolve(const float* in, const float* taps, const std::int32_t* near, float* out,
              Index tiles, Index channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index t = 0; t < tiles; ++t)
    convolve_tile<P, V>(in, taps, near + t * neighbours_of(P), out + t * P * P * channels,
                        channels);
}

// out: (chunks, kTaps + 1, channels).
template <int P, class V>
void correlate(const float* in, const float* grad, const std::int32_t* near, double* out,
               Index tiles, Index channels, Index chunks, int threads) {
  constexpr Index step = lanes_of<V>(), line = std::max(step, Index{8});
  constexpr Index together = std::max(kBlock / (P * P), Index{1});  // tiles of a block of rows
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
  for (Index chunk = 0; chunk < chunks; ++chunk)
    for (Index first = 0; first < channels; first += line) {
      double totals[kTaps + 1][line] = {};
      const Index last = (chunk + 1) * tiles / chunks;
      for (Index t = chunk * tiles / chunks; t < last; t += together)
        for (Index c = 0; c < line; c += step) {
          V sums[kTaps + 1] = {};
          for (Index k = t; k < std::min(t + together, last); ++k)
            correlate_tile<P, V>(in + first + c, grad + k * P * P * channels + first + c,
                                 near + k * neighbours_of(P), sums, channels);
          for (Index k = 0; k <= kTaps; ++k)
            for (Index j = 0; j < step; ++j) totals[k][c + j] += sums[k][j];
        }
      for (Index k = 0; k <= kTaps; ++k)
        std::copy_n(totals[k], line, out + (chunk * (kTaps + 1) + k) * channels + first);
    }
}

}  // namespace

extern "C" {

// Tiles have sides of 1, 2, 4 or 8.
#define BY_SIDE(function, ...)                                                 \
  if (!are_tiles(near, tiles * neighbours_of(side), tiles)) return 1;          \
  pick(channels, [&](auto lanes) {                                             \
    typedef typename decltype(lanes)::type V;                                  \
    side == 1   ? function<1, V>(__VA_ARGS__)                                  \
    : side == 2 ? function<2, V>(__VA_ARGS__)                                  \
    : side == 4 ? function<4, V>(__VA_ARGS__)                                  \
                : function<8, V>(__VA_ARGS__);                                 \
  });                                                                          \
  return 0;

int videomac_depthwise(const float* in, const float* taps, const std::int32_t* near, float* out,
                       Index tiles, Index channels, Index side, int threads) {
  BY_SIDE(convolve, in, taps, near, out, tiles, channels, threads)
}

int videomac_depthwise_weight(const float* in, const float* grad, const std::int32_t* near,
                              double* out, Index tiles, Index channels, Index chunks, Index side,
                              int threads) {
  BY_SIDE(correlate, in, grad, near, out, tiles, channels, chunks, threads)
}

}  // extern "C"
