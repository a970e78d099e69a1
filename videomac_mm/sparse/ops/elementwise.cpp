// Chains of element-wise operations in one pass: GELU with the sums that GRN needs, and layer norm
// with GELU.

#include <initializer_list>

#include "vectors.h"

namespace {

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

template <class V>
inline V load_or_zero(const float* p, Index c) {
  return p ? load<V>(p + c) : V{};
}

template <class V>
inline void add(float* sum, V value) {
  store(sum, load<V>(sum) + value);
}

// Calls body(group, row, sums) for all rows (groups * rows), each group in `chunks` tasks; body
// adds what it sums up to `number` floats, which end in `out` (groups, chunks, number).
template <class Body>
void over_rows(double* out, Index groups, Index chunks, Index rows, Index number, int threads,
               Body body) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (Index task = 0; task < groups * chunks; ++task) {
    std::vector<float> block(number);
    double* sums = out + task * number;
    std::fill_n(sums, number, 0.0);
    const Index group = task / chunks, chunk = task % chunks;
    const Index first = chunk * rows / chunks, last = (chunk + 1) * rows / chunks;
    for (Index row = first; row < last; ++row) {
      body(group, group * rows + row, block.data());
      if ((row - first) % kBlock == kBlock - 1 || row == last - 1)
        flush(block.data(), sums, number);
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

}  // namespace

extern "C" {

// out = gelu(in + bias), and the sums of its squares: energy (groups, chunks, channels).
int videomac_gelu_energy(const float* in, const float* bias, float* out, double* energy,
                         Index groups, Index chunks, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    typedef typename decltype(lanes)::type V;
    over_rows(energy, groups, chunks, rows, channels, threads,
              [&](Index, Index row, float* sums) {
                for (Index c = 0; c < channels; c += lanes_of<V>()) {
                  const V x = load<V>(in + row * channels + c) + load_or_zero<V>(bias, c);
                  V distribution, density;
                  normal<decltype(lanes)>(x, distribution, density);
                  const V y = x * distribution;
                  store(out + row * channels + c, y);
                  add(sums + c, y * y);
                }
              });
  });
  return 0;
}

// Sums of grad * gelu(in + bias), and of grad: sums (groups, chunks, 2, channels).
int videomac_gelu_sums(const float* grad, const float* in, const float* bias, double* out,
                       Index groups, Index chunks, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    typedef typename decltype(lanes)::type V;
    over_rows(out, groups, chunks, rows, 2 * channels, threads,
              [&](Index, Index row, float* sums) {
                for (Index c = 0; c < channels; c += lanes_of<V>()) {
                  const V x = load<V>(in + row * channels + c) + load_or_zero<V>(bias, c);
                  const V g = load<V>(grad + row * channels + c);
                  V distribution, density;
                  normal<decltype(lanes)>(x, distribution, density);
                  add(sums + c, g * x * distribution);
                  add(sums + channels + c, g);
                }
              });
  });
  return 0;
}

// With y = in + bias: out = (grad * scale + gelu(y) * slope) * gelu'(y), and its sums: to_bias
// (groups, chunks, channels).
int videomac_gelu_backward(const float* grad, const float* in, const float* bias,
                           const float* scale, const float* slope, float* out, double* to_bias,
                           Index groups, Index chunks, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    typedef typename decltype(lanes)::type V;
    over_rows(to_bias, groups, chunks, rows, channels, threads,
              [&](Index group, Index row, float* sums) {
                const float *scales = scale + group * channels, *slopes = slope + group * channels;
                for (Index c = 0; c < channels; c += lanes_of<V>()) {
                  const V x = load<V>(in + row * channels + c) + load_or_zero<V>(bias, c);
                  V distribution, density;
                  normal<decltype(lanes)>(x, distribution, density);
                  const V to_y = load<V>(grad + row * channels + c) * load<V>(scales + c) +
                                 x * distribution * load<V>(slopes + c);
                  const V to_x = to_y * (distribution + x * density);
                  store(out + row * channels + c, to_x);
                  add(sums + c, to_x);
                }
              });
  });
  return 0;
}

// out = gelu(layer_norm(in) + residual), with the mean and the reciprocal deviation of each row.
int videomac_norm_gelu(const float* in, const float* gamma, const float* beta,
                       const float* residual, float eps, float* out, float* mean, float* rstd,
                       Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    norm_gelu<decltype(lanes)>(in, gamma, beta, residual, eps, out, mean, rstd, rows, channels,
                               threads);
  });
  return 0;
}

// The gradients of norm_gelu; those of gamma and beta as sums (chunks, 2, channels).
int videomac_norm_gelu_backward(const float* grad, const float* in, const float* gamma,
                                const float* beta, const float* residual, const float* mean,
                                const float* rstd, float* out, float* to_residual, double* sums,
                                Index chunks, Index rows, Index channels, int threads) {
  pick(channels, [&](auto lanes) {
    typedef typename decltype(lanes)::type V;
    over_rows(sums, 1, chunks, rows, 2 * channels, threads, [&](Index, Index row, float* sums) {
      const float *from = in + row * channels, centre = mean[row], scale = rstd[row];
      float* to = out + row * channels;
      V sum{}, products{};
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V normed = (load<V>(from + c) - centre) * scale, weight = load<V>(gamma + c);
        V x = normed * weight + load<V>(beta + c);
        if (residual) x += load<V>(residual + row * channels + c);
        V distribution, density;
        normal<decltype(lanes)>(x, distribution, density);
        const V g = load<V>(grad + row * channels + c) * (distribution + x * density);
        if (residual) store(to_residual + row * channels + c, g);
        add(sums + c, g * normed);
        add(sums + channels + c, g);
        store(to + c, g * weight);
        sum += g * weight;
        products += g * weight * normed;
      }
      const float plain = total(sum) / channels, slope = total(products) / channels;
      for (Index c = 0; c < channels; c += lanes_of<V>()) {
        const V normed = (load<V>(from + c) - centre) * scale;
        store(to + c, (load<V>(to + c) - plain - normed * slope) * scale);
      }
    });
  });
  return 0;
}

}  // extern "C"
