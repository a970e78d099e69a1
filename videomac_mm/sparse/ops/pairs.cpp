// Convs that mix channels on packed tiles, and their gradients, as matrix products of the pairs
// of rows that exist at each tap of the kernel.
//
// A weight is (columns, taps, channels): a matrix for each tap.

#include <type_traits>

#include "vectors.h"

namespace {

// Some rows at a time and two vectors of columns: sums that fit the registers.
constexpr int kVectors = 2, kRows = kRegisters == 32 ? 12 : 6;
constexpr Index kDepth = 256;  // of a panel of the weight, which stays in the first cache
constexpr Index kBatch = 256;  // pairs of a panel of both sides of the weight's gradient
constexpr Index kPiece = 384;  // output rows, which with those that they read fit the second cache

template <class V>
constexpr Index width_of() {
  return kVectors * lanes_of<V>();
}

// Where the windows of a tile's outputs lie among its neighbours; or, reversed, which outputs
// read each site of a tile.
struct Pattern {
  Index taps, places, others, around;  // rows of a tile, of the tiles that it is paired with
  std::vector<Index> tile, row;        // for each place and tap; tile -1 for none

  Pattern(Index side, Index kernel, Index stride, Index before, Index reach, bool reversed)
      : taps(kernel * kernel), around((2 * reach + 1) * (2 * reach + 1)) {
    const Index outputs = side / stride, own = reversed ? side : outputs,
                other = reversed ? outputs : side;
    places = own * own;
    others = other * other;
    for (Index y = 0; y < own; ++y)
      for (Index x = 0; x < own; ++x)
        for (Index ky = 0; ky < kernel; ++ky)
          for (Index kx = 0; kx < kernel; ++kx) {
            const Index v = reversed ? y + before - ky : y * stride - before + ky;
            const Index u = reversed ? x + before - kx : x * stride - before + kx;
            const Index step = reversed ? stride : 1;
            const bool exists = v % step == 0 && u % step == 0;
            const Index down = divide(v / step, other), right = divide(u / step, other);
            tile.push_back(exists ? (down + reach) * (2 * reach + 1) + right + reach : -1);
            row.push_back((v / step - down * other) * other + u / step - right * other);
          }
  }

  static Index divide(Index a, Index b) { return (a >= 0 ? a : a - b + 1) / b; }  // rounds down

  // The row that row `own` reads at a tap; -1 for none.
  Index at(const std::int32_t* near, Index own, Index tap) const {
    const Index k = own % places * taps + tap;
    const Index found = tile[k] < 0 ? -1 : near[own / places * around + tile[k]];
    return found < 0 ? -1 : found * others + row[k];
  }
};

// Rows of the input and of the output, paired, one tap after the other.
struct Pairs {
  std::vector<Index> read, written, start{0};

  void add(const Pattern& pattern, const std::int32_t* near, Index tap, Index first, Index last) {
    for (Index row = first; row < last; ++row)
      if (const Index from = pattern.at(near, row, tap); from >= 0) {
        read.push_back(from);
        written.push_back(row);
      }
    start.push_back(read.size());
  }
};

// Into how many parts to divide each task, so that threads with less to do find more.
Index parts_of(Index tasks, Index most, int threads) {
  return std::min((4 * threads + tasks - 1) / tasks, most);
}

// Calls body with the number of rows, up to kRows, as a constant.
template <int rows = kRows, class Body>
inline void with_rows(Index number, Body body) {
  if (number == rows)
    body(std::integral_constant<int, rows>{});
  else if constexpr (rows > 1)
    with_rows<rows - 1>(number, body);
}

// sums[r] += left(r, k) * right[k], summed over k.
template <int rows, class V, class Left>
inline void accumulate(V (&sums)[rows][kVectors], Left left, const float* right, Index depth) {
  for (Index k = 0; k < depth; ++k) {
    V columns[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j)
      columns[j] = load<V>(right + k * width_of<V>() + j * lanes_of<V>());
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[r][j] += left(r, k) * columns[j];
  }
}

inline void transpose(const float* in, Index in_stride, float* out, Index out_stride) {
  float block[8][8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) std::memcpy(block[i], in + i * in_stride, sizeof(block[i]));
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) out[i * out_stride + j] = block[j][i];
}

// Columns of a weight as a panel (depth, width). They are contiguous, or the depth is.
template <class V>
void pack_weight(const float* weight, Index depth_stride, Index column_stride, Index depth,
                 float* panel) {
  constexpr Index width = width_of<V>();
  if (column_stride == 1) {
    for (Index k = 0; k < depth; ++k)
      std::memcpy(panel + k * width, weight + k * depth_stride, width * sizeof(float));
  } else {
    for (Index k = 0; k < depth; k += 8)
      for (Index column = 0; column < width; column += 8)
        transpose(weight + column * column_stride + k, column_stride, panel + k * width + column,
                  width);
  }
}

// Adds the products of rows and a panel (depth, width) to those rows that they are paired with.
template <class V>
void add_products(const float* in, Index channels, const float* panel, Index depth,
                  const Index* read, const Index* written, Index number, float* out,
                  Index columns) {
  const Index blocks = (number + kRows - 1) / kRows;
  for (Index block = 0; block < blocks; ++block) {
    const Index start = block * number / blocks;
    with_rows((block + 1) * number / blocks - start, [&](auto count) {
      constexpr int rows = decltype(count)::value;
      const float* from[rows];
      float* to[rows];
      V sums[rows][kVectors];
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        from[r] = in + read[start + r] * channels;
        to[r] = out + written[start + r] * columns;
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) sums[r][j] = load<V>(to[r] + j * lanes_of<V>());
      }
      accumulate(sums, [&](int r, Index k) { return from[r][k]; }, panel, depth);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < kVectors; ++j) store(to[r] + j * lanes_of<V>(), sums[r][j]);
    });
  }
}

// `depth` channels are read and `columns` written; reversed, the weight is read transposed.
template <class L>
void convolve(const float* in, const float* weight, const float* bias, const std::int32_t* near,
              float* out, const Pattern& pattern, Index tiles, Index channels, Index columns,
              bool reversed, int threads) {
  typedef typename L::type V;
  constexpr Index width = width_of<V>();
  const Index rows = tiles * pattern.places, taps = pattern.taps;
  const Index tap_stride = reversed ? columns : channels;
  const Index depth_stride = reversed ? taps * columns : 1;
  const Index column_stride = reversed ? 1 : taps * channels;
  const Index parts = parts_of((rows + kPiece - 1) / kPiece, columns / width, threads);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
  for (Index first = 0; first < rows; first += kPiece)
    for (Index part = 0; part < parts; ++part) {
      const Index last = std::min(rows, first + kPiece), panels = columns / width;
      Pairs pairs;
      for (Index tap = 0; tap < taps; ++tap) pairs.add(pattern, near, tap, first, last);
      float panel[kDepth * width];
      for (Index c = part * panels / parts * width; c < (part + 1) * panels / parts * width;
           c += width) {
        for (Index row = first; row < last; ++row)
          if (bias)
            std::memcpy(out + row * columns + c, bias + c, width * sizeof(float));
          else
            std::memset(out + row * columns + c, 0, width * sizeof(float));
        for (Index tap = 0; tap < taps; ++tap) {
          const Index start = pairs.start[tap], number = pairs.start[tap + 1] - start;
          for (Index k = 0; number && k < channels; k += kDepth) {
            const Index depth = std::min(kDepth, channels - k);
            pack_weight<V>(weight + tap * tap_stride + k * depth_stride + c * column_stride,
                           depth_stride, column_stride, depth, panel);
            add_products<V>(in + k, channels, panel, depth, &pairs.read[start],
                            &pairs.written[start], number, out + c, columns);
          }
        }
      }
    }
}

template <class L>
void correlate(const float* in, const float* grad, const std::int32_t* near, float* out,
               const Pattern& pattern, Index tiles, Index channels, Index columns, int threads) {
  typedef typename L::type V;
  constexpr Index width = width_of<V>();
  const Index taps = pattern.taps, blocks = (columns + kRows - 1) / kRows;
  const Index parts = parts_of(taps, blocks, threads);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
  for (Index tap = 0; tap < taps; ++tap)
    for (Index part = 0; part < parts; ++part) {
      Pairs pairs;
      pairs.add(pattern, near, tap, 0, tiles * pattern.places);
      const Index number = pairs.read.size();
      const Index first = part * blocks / parts, last = (part + 1) * blocks / parts;
      const auto column_of = [&](Index block) { return block * columns / blocks; };
      std::vector<float> grads((last - first) * kBatch * kRows);
      // What rounding lost of each sum (Kahan), since there may be many batches of pairs.
      std::vector<float> lost((column_of(last) - column_of(first)) * channels);
      for (Index column = column_of(first); column < column_of(last); ++column)
        std::memset(out + (column * taps + tap) * channels, 0, channels * sizeof(float));
      float panel[kBatch * width];
      for (Index start = 0; start < number; start += kBatch) {
        const Index depth = std::min(kBatch, number - start);
        const Index *read = pairs.read.data() + start, *written = pairs.written.data() + start;
        for (Index block = first; block < last; ++block)
          with_rows(column_of(block + 1) - column_of(block), [&](auto count) {
            const float* from = grad + column_of(block);
            float* to = &grads[(block - first) * kBatch * kRows];
            for (Index i = 0; i < depth; ++i)
              std::memcpy(to + i * kRows, from + written[i] * columns, count * sizeof(float));
          });
        for (Index c = 0; c < channels; c += width) {
          for (Index i = 0; i < depth; ++i)
            std::memcpy(panel + i * width, in + read[i] * channels + c, width * sizeof(float));
          for (Index block = first; block < last; ++block) {
            const float* left = &grads[(block - first) * kBatch * kRows];
            float* to = out + (column_of(block) * taps + tap) * channels + c;
            float* missing = &lost[(column_of(block) - column_of(first)) * channels + c];
            with_rows(column_of(block + 1) - column_of(block), [&](auto count) {
              constexpr int rows = decltype(count)::value;
              V sums[rows][kVectors] = {};
              accumulate(sums, [=](int r, Index i) { return left[i * kRows + r]; }, panel, depth);
#pragma GCC unroll 16
              for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
                for (int j = 0; j < kVectors; ++j) {
                  float* total = to + r * taps * channels + j * lanes_of<V>();
                  float* error = missing + r * channels + j * lanes_of<V>();
                  const V old = load<V>(total), more = sums[r][j] - load<V>(error);
                  const V sum = old + more;
                  store(error, (sum - old) - more);
                  store(total, sum);
                }
            });
          }
        }
      }
    }
}

}  // namespace

extern "C" {

// Forward: in (tiles * side², channels) to out (tiles * outputs², columns). Reversed, the way back
// of a gradient: in (tiles * outputs², channels) to out (tiles * side², columns), with the weight
// of the forward pass, (channels, taps, columns) then.
int videomac_pairs(const float* in, const float* weight, const float* bias,
                   const std::int32_t* near, float* out, Index tiles, Index channels,
                   Index columns, Index side, Index kernel, Index stride, Index before,
                   Index reach, Index reversed, int threads) {
  const Pattern pattern(side, kernel, stride, before, reach, reversed);
  if (!are_tiles(near, tiles * pattern.around, tiles)) return 1;
  pick(columns / kVectors, [&](auto lanes) {
    convolve<decltype(lanes)>(in, weight, bias, near, out, pattern, tiles, channels, columns,
                              reversed, threads);
  });
  return 0;
}

// The gradient of the weight: in (tiles * side², channels), grad (tiles * outputs², columns), out
// (columns, taps, channels).
int videomac_pairs_weight(const float* in, const float* grad, const std::int32_t* near,
                          float* out, Index tiles, Index channels, Index columns, Index side,
                          Index kernel, Index stride, Index before, Index reach, int threads) {
  const Pattern pattern(side, kernel, stride, before, reach, false);
  if (!are_tiles(near, tiles * pattern.around, tiles)) return 1;
  pick(channels / kVectors, [&](auto lanes) {
    correlate<decltype(lanes)>(in, grad, near, out, pattern, tiles, channels, columns, threads);
  });
  return 0;
}

}  // extern "C"
