// What eager torch does badly on the CPU, float32: convs straight from packed tiles, and the
// element-wise chains around the matrix products in one pass.
//
// Built by cpu_kernels.py, which says what each function does. Rows are sites, channels are
// contiguous and a multiple of 8. Taps are the places of a kernel, row by row; those of the
// depth-wise conv end with the bias. Every result is written by one thread, so that runs agree
// to the bit.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace {

using Index = std::int64_t;

// Vectors of GCC and clang; unaligned in memory.
template <int N>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * N)));
  typedef std::int32_t bits __attribute__((vector_size(4 * N)));
};

// As the registers are: GCC makes of wider ones a detour through memory.
#if defined(__AVX512F__)
constexpr int kWidest = 16, kNarrowest = 8;
#elif defined(__AVX__)
constexpr int kWidest = 8, kNarrowest = 8;
#else
constexpr int kWidest = 4, kNarrowest = 4;
#endif

template <class V>
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
inline void store(float* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}

typedef Lanes<kWidest> Wide;
typedef Lanes<kNarrowest> Narrow;

// Calls body with the widest vectors that divide the channels.
template <class Body>
inline void pick(Index channels, Body body) {
  if (channels % kWidest == 0)
    body(Wide{});
  else
    body(Narrow{});
}

template <class V>
constexpr Index lanes_of() {
  return sizeof(V) / sizeof(float);
}

// ------------------------------------------------------------------------ depth-wise 7x7

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
  constexpr int step = sizeof(V) / sizeof(float);
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

template <int P, class V>
void correlate(const float* in, const float* grad, const std::int32_t* near, float* out,
               Index tiles, Index channels, Index chunks, int threads) {
  constexpr Index step = sizeof(V) / sizeof(float);
  const Index line = channels % 16 ? 8 : 16;  // a line of the cache, where it comes out even
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
  for (Index chunk = 0; chunk < chunks; ++chunk)
    for (Index first = 0; first < channels; first += line) {
      V sums[2][kTaps + 1] = {};
      for (Index t = chunk * tiles / chunks; t < (chunk + 1) * tiles / chunks; ++t)
        for (Index c = 0; c < line; c += step)
          correlate_tile<P, V>(in + first + c, grad + t * P * P * channels + first + c,
                               near + t * neighbours_of(P), sums[c / step], channels);
      for (Index c = 0; c < line; c += step)
        for (Index k = 0; k <= kTaps; ++k)
          store(out + (chunk * (kTaps + 1) + k) * channels + first + c, sums[c / step][k]);
    }
}

// ------------------------------------------------------------- convs that mix channels

// Matrix products of the pairs of rows that exist at each tap. Six rows at a time and two
// vectors of columns: sums that fit the registers.
constexpr int kRows = 6, kVectors = 2;
constexpr Index kDepth = 256;  // of a panel of the weight: it stays in the first cache
constexpr Index kBatch = 256;  // pairs of a panel of both sides of the weight's gradient

template <class V>
constexpr Index width_of() {
  return kVectors * lanes_of<V>();
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
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[r][j] += left(r, k) * columns[j];
  }
}

template <int rows, class V, class Place>
inline void load_sums(V (&sums)[rows][kVectors], Place place) {
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) sums[r][j] = load<V>(place(r) + j * lanes_of<V>());
}

template <int rows, class V, class Place>
inline void store_sums(const V (&sums)[rows][kVectors], Place place) {
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) store(place(r) + j * lanes_of<V>(), sums[r][j]);
}

// Rows of the input and of the output, paired, one tap after the other.
struct Pairs {
  std::vector<Index> read, written, start{0};

  void add(const std::int32_t* table, Index taps, Index tap, Index first, Index last) {
    for (Index row = first; row < last; ++row)
      if (const Index from = table[row * taps + tap]; from >= 0) {
        read.push_back(from);
        written.push_back(row);
      }
    start.push_back(read.size());
  }
};

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
      const float* from[count];
      float* to[count];
      for (int r = 0; r < count; ++r) {
        from[r] = in + read[start + r] * channels;
        to[r] = out + written[start + r] * columns;
      }
      V sums[count][kVectors];
      load_sums(sums, [&](int r) { return to[r]; });
      accumulate(sums, [&](int r, Index k) { return from[r][k]; }, panel, depth);
      store_sums(sums, [&](int r) { return to[r]; });
    });
  }
}

template <class L>
void convolve_pairs(const float* in, const float* weight, const std::int32_t* table, float* out,
                    Index rows, Index taps, Index channels, Index columns, Index transposed,
                    Index piece, Index parts, int threads) {
  typedef typename L::type V;
  constexpr Index width = width_of<V>();
  const Index tap_stride = transposed ? columns : channels;
  const Index depth_stride = transposed ? taps * columns : 1;
  const Index column_stride = transposed ? 1 : taps * channels;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
  for (Index first = 0; first < rows; first += piece)
    for (Index part = 0; part < parts; ++part) {
      const Index last = std::min(rows, first + piece), panels = columns / width;
      Pairs pairs;
      for (Index tap = 0; tap < taps; ++tap) pairs.add(table, taps, tap, first, last);
      float panel[kDepth * width];
      for (Index c = part * panels / parts * width; c < (part + 1) * panels / parts * width;
           c += width) {
        for (Index row = first; row < last; ++row)
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
void correlate_pairs(const float* in, const float* grad, const std::int32_t* table, float* out,
                     Index rows, Index taps, Index channels, Index columns, Index parts,
                     int threads) {
  typedef typename L::type V;
  constexpr Index width = width_of<V>();
  const Index blocks = (columns + kRows - 1) / kRows;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic)
  for (Index tap = 0; tap < taps; ++tap)
    for (Index part = 0; part < parts; ++part) {
      Pairs pairs;
      pairs.add(table, taps, tap, 0, rows);
      const Index number = pairs.read.size();
      const Index first = part * blocks / parts, last = (part + 1) * blocks / parts;
      const auto column_of = [&](Index block) { return block * columns / blocks; };
      std::vector<float> grads((last - first) * kBatch * kRows);
      float panel[kBatch * width];
      for (Index start = 0; start == 0 || start < number; start += kBatch) {
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
            const auto place = [=](int r) { return to + r * taps * channels; };
            with_rows(column_of(block + 1) - column_of(block), [&](auto count) {
              V sums[count][kVectors] = {};
              if (start) load_sums(sums, place);
              accumulate(sums, [=](int r, Index i) { return left[i * kRows + r]; }, panel, depth);
              store_sums(sums, place);
            });
          }
        }
      }
    }
}

// ------------------------------------------------------------------------------ gathering

// Each row the sum of `many` rows, those from `rows` on being of `fill`.
template <class L>
void take(const float* in, const Index* table, float fill, float* out, Index num, Index many,
          Index rows, Index channels, int threads) {
  typedef typename L::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index k = 0; k < num; ++k)
    for (Index c = 0; c < channels; c += lanes_of<V>()) {
      V sum{};
      for (Index i = k * many; i < (k + 1) * many; ++i)
        sum += table[i] < rows ? load<V>(in + table[i] * channels + c) : V{} + fill;
      store(out + k * channels + c, sum);
    }
}

// ------------------------------------------------------------------------- element-wise

template <class V>
inline V larger(V a, V b) { return a < b ? b : a; }  // a where it is not a number

// e^x for x <= 0; zero from -87 on, where the normal numbers end.
template <class L>
inline typename L::type exponential(typename L::type x) {
  typedef typename L::type V;
  typedef typename L::bits I;
  const I is_normal = ~(x < -87.0f);
  x = larger(x, V{} - 87.0f);
  const V magic = V{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds
  const V n = (x * 1.44269504f + magic) - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = V{} + 1.0f / 5040;  // |r| <= log(2) / 2
  for (float k : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + k;
  return (V)(((I)p + (__builtin_convertvector(n, I) << 23)) & is_normal);
}

// The normal distribution and its density. Below zero the distribution is density times a
// polynomial of t = 1 / (1 + 0.34 |x|), fitted by least squares; relative error 4e-7.
template <class L, class V>
inline void normal(V x, V& distribution, V& density) {
  const V e = exponential<L>(x * x * -0.5f);
  const V t = 1.0f / (larger(x, -x) * 0.34f + 1.0f);
  V p = V{} + -0.0261215884f;
  for (float k : {0.139504761f, -0.273143232f, 0.202194064f, -0.0447260104f, 0.115362205f,
                  0.115196928f, 0.136112288f, 0.135620505f})
    p = p * t + k;
  const V tail = e * (p * t);
  distribution = x < 0.0f ? tail : 1.0f - tail;
  density = e * 0.398942280f;
}

template <class V>
inline float total(V v) {
  float sum = 0;
  for (Index k = 0; k < lanes_of<V>(); ++k) sum += v[k];
  return sum;
}

// Rows of a chunk of a group.
struct Chunk {
  Index group, first, last;
  Chunk(Index task, Index chunks, Index rows) : group(task / chunks) {
    const Index k = task % chunks;
    first = group * rows + k * rows / chunks;
    last = group * rows + (k + 1) * rows / chunks;
  }
};

template <class L>
void gelu(const float* in, const float* bias, float* out, float* energy, Index groups,
          Index chunks, Index rows, Index channels, int threads) {
  typedef typename L::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index task = 0; task < groups * chunks; ++task) {
    const Chunk chunk(task, chunks, rows);
    float* sums = energy + task * channels;
    std::memset(sums, 0, channels * sizeof(float));
    for (Index row = chunk.first; row < chunk.last; ++row)
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V x = load<V>(in + row * channels + c) + load<V>(bias + c);
        V distribution, density;
        normal<L>(x, distribution, density);
        const V y = x * distribution;
        store(out + row * channels + c, y);
        store(sums + c, load<V>(sums + c) + y * y);
      }
  }
}

template <class L>
void sums(const float* grad, const float* in, float* out, Index groups, Index chunks, Index rows,
          Index channels, int threads) {
  typedef typename L::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index task = 0; task < groups * chunks; ++task) {
    const Chunk chunk(task, chunks, rows);
    float *products = out + task * 2 * channels, *plain = products + channels;
    std::memset(products, 0, 2 * channels * sizeof(float));
    for (Index row = chunk.first; row < chunk.last; ++row)
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V g = load<V>(grad + row * channels + c);
        store(products + c, load<V>(products + c) + g * load<V>(in + row * channels + c));
        store(plain + c, load<V>(plain + c) + g);
      }
  }
}

template <class L>
void gelu_backward(const float* in, const float* bias, const float* scale, const float* slope,
                   float* grad, float* to_bias, Index groups, Index chunks, Index rows,
                   Index channels, int threads) {
  typedef typename L::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index task = 0; task < groups * chunks; ++task) {
    const Chunk chunk(task, chunks, rows);
    const float *scales = scale + chunk.group * channels, *slopes = slope + chunk.group * channels;
    float* sums = to_bias + task * channels;
    std::memset(sums, 0, channels * sizeof(float));
    for (Index row = chunk.first; row < chunk.last; ++row)
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V x = load<V>(in + row * channels + c) + load<V>(bias + c);
        V distribution, density;
        normal<L>(x, distribution, density);
        float* g = grad + row * channels + c;
        const V to_y =
            load<V>(g) * load<V>(scales + c) + x * distribution * load<V>(slopes + c);
        const V to_x = to_y * (distribution + x * density);
        store(g, to_x);
        store(sums + c, load<V>(sums + c) + to_x);
      }
  }
}

template <class L>
void norm_gelu(const float* in, const float* gamma, const float* beta, const float* residual,
               float eps, float* out, float* mean, float* rstd, Index rows, Index channels,
               int threads) {
  typedef typename L::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index row = 0; row < rows; ++row) {
    const float* from = in + row * channels;
    V sum{}, squares{};
    for (Index c = 0; c < channels; c += lanes_of<V>()) sum += load<V>(from + c);
    const float centre = total(sum) / channels;
    for (Index c = 0; c < channels; c += lanes_of<V>()) {
      const V d = load<V>(from + c) - centre;
      squares += d * d;
    }
    const float scale = 1.0f / __builtin_sqrtf(total(squares) / channels + eps);
    mean[row] = centre;
    rstd[row] = scale;
    for (Index c = 0; c < channels; c += lanes_of<V>()) {
      V x = (load<V>(from + c) - centre) * scale * load<V>(gamma + c) + load<V>(beta + c);
      if (residual) x += load<V>(residual + row * channels + c);
      V distribution, density;
      normal<L>(x, distribution, density);
      store(out + row * channels + c, x * distribution);
    }
  }
}

template <class L>
void norm_gelu_backward(const float* grad, const float* in, const float* gamma, const float* beta,
                        const float* residual, const float* mean, const float* rstd, float* out,
                        float* to_residual, float* partial, Index chunks, Index rows,
                        Index channels, int threads) {
  typedef typename L::type V;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index task = 0; task < chunks; ++task) {
    const Chunk chunk(task, chunks, rows);
    float *to_gamma = partial + task * 2 * channels, *to_beta = to_gamma + channels;
    std::memset(to_gamma, 0, 2 * channels * sizeof(float));
    for (Index row = chunk.first; row < chunk.last; ++row) {
      const float *from = in + row * channels, centre = mean[row], scale = rstd[row];
      float* to = out + row * channels;
      V sum{}, products{};
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V normed = (load<V>(from + c) - centre) * scale, weight = load<V>(gamma + c);
        V x = normed * weight + load<V>(beta + c);
        if (residual) x += load<V>(residual + row * channels + c);
        V distribution, density;
        normal<L>(x, distribution, density);
        const V g = load<V>(grad + row * channels + c) * (distribution + x * density);
        if (residual) store(to_residual + row * channels + c, g);
        store(to_gamma + c, load<V>(to_gamma + c) + g * normed);
        store(to_beta + c, load<V>(to_beta + c) + g);
        store(to + c, g * weight);
        sum += g * weight;
        products += g * weight * normed;
      }
      const float plain = total(sum) / channels, slope = total(products) / channels;
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V normed = (load<V>(from + c) - centre) * scale;
        store(to + c, (load<V>(to + c) - plain - normed * slope) * scale);
      }
    }
  }
}

}  // namespace

extern "C" {

// Sides of tiles are 1, 2, 4 or 8; the caller sees to it.
#define BY_SIDE(function, ...)                                                 \
  pick(channels, [&](auto lanes) {                                             \
    typedef typename decltype(lanes)::type V;                                  \
    side == 1   ? function<1, V>(__VA_ARGS__)                                  \
    : side == 2 ? function<2, V>(__VA_ARGS__)                                  \
    : side == 4 ? function<4, V>(__VA_ARGS__)                                  \
                : function<8, V>(__VA_ARGS__);                                 \
  })

void videomac_convolve(const float* in, const float* taps, const std::int32_t* near, float* out,
                       Index tiles, Index channels, int side, int threads) {
  BY_SIDE(convolve, in, taps, near, out, tiles, channels, threads);
}

void videomac_correlate(const float* in, const float* grad, const std::int32_t* near, float* out,
                        Index tiles, Index channels, Index chunks, int side, int threads) {
  BY_SIDE(correlate, in, grad, near, out, tiles, channels, chunks, threads);
}

void videomac_convolve_pairs(const float* in, const float* weight, const std::int32_t* table,
                             float* out, Index rows, Index taps, Index channels, Index columns,
                             Index transposed, Index piece, Index parts, int threads) {
  pick(columns / kVectors, [&](auto lanes) {
    convolve_pairs<decltype(lanes)>(in, weight, table, out, rows, taps, channels, columns,
                                    transposed, piece, parts, threads);
  });
}

void videomac_correlate_pairs(const float* in, const float* grad, const std::int32_t* table,
                              float* out, Index rows, Index taps, Index channels, Index columns,
                              Index parts, int threads) {
  pick(channels / kVectors, [&](auto lanes) {
    correlate_pairs<decltype(lanes)>(in, grad, table, out, rows, taps, channels, columns, parts,
                                     threads);
  });
}

void videomac_take(const float* in, const Index* table, float fill, float* out, Index num,
                   Index many, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    take<decltype(lanes)>(in, table, fill, out, num, many, rows, channels, threads);
  });
}

void videomac_gelu(const float* in, const float* bias, float* out, float* energy, Index groups,
                   Index chunks, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    gelu<decltype(lanes)>(in, bias, out, energy, groups, chunks, rows, channels, threads);
  });
}

void videomac_sums(const float* grad, const float* in, float* out, Index groups, Index chunks,
                   Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    sums<decltype(lanes)>(grad, in, out, groups, chunks, rows, channels, threads);
  });
}

void videomac_gelu_backward(const float* in, const float* bias, const float* scale,
                            const float* slope, float* grad, float* to_bias, Index groups,
                            Index chunks, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    gelu_backward<decltype(lanes)>(in, bias, scale, slope, grad, to_bias, groups, chunks, rows,
                                   channels, threads);
  });
}

void videomac_norm_gelu(const float* in, const float* gamma, const float* beta,
                        const float* residual, float eps, float* out, float* mean, float* rstd,
                        Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    norm_gelu<decltype(lanes)>(in, gamma, beta, residual, eps, out, mean, rstd, rows, channels,
                               threads);
  });
}

void videomac_norm_gelu_backward(const float* grad, const float* in, const float* gamma,
                                 const float* beta, const float* residual, const float* mean,
                                 const float* rstd, float* out, float* to_residual,
                                 float* partial, Index chunks, Index rows, Index channels,
                                 int threads) {
  pick(channels, [&](auto lanes) {
    norm_gelu_backward<decltype(lanes)>(grad, in, gamma, beta, residual, mean, rstd, out,
                                        to_residual, partial, chunks, rows, channels, threads);
  });
}

}  // extern "C"
