// The layers of a decoding step, and passes of training between matrix products, in one sweep over memory each.
//
// Plain C++17 with the vector types of GCC and Clang: 16 floats at a time, of the vectors that the CPU has (vectors.h).
// Every array is row-major. Arithmetic is in float whatever the elements are; a result is rounded once, when written.
// Pointers and sizes are checked by the Python side (operations.py), which also says what each function computes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kTile = 6;  // queries that share each key and value read

constexpr int64_t kBlock = 256;  // entries of a vocabulary that are summed in float before they join the others

#include "vectors.h"

constexpr int kColumns = 2 * kLanes;  // of a block of outputs
constexpr int kChunk = 32;            // rows computed against a block at a time
constexpr int kMostRows = kSums < 8 ? kSums : 8;  // whose sums fill the registers, of one panel or of both

// What a product reads: `in` inputs of each row of x, whose rows begin `step` elements apart, and of two panels, that of
// 16 outputs and that of the next 16; null where there are no more. In a panel 16 outputs of one input lie together; of
// bfloat16, two inputs of each output lie side by side, as the CPU's instructions for pairs want them.
template <class T>
struct Factors {
  const T* x;
  int64_t step, in;
  const T *panel, *next;
  bool goes_on = false;  // from what the block holds, by vectors
};

// totals[m] += x[m * step] * weights.
template <int num, int panels, class T>
inline void add_products(Vec (&totals)[num][panels], const T* x, int64_t step, const Vec (&weights)[panels]) {
#pragma GCC unroll 8
  for (int m = 0; m < num; ++m) {
    const float factor = to_float(x[m * step]);
#pragma GCC unroll 2
    for (int i = 0; i < panels; ++i) totals[m][i] += factor * weights[i];
  }
}

// What sums go on from: what the block holds, or 0.
template <int num, int panels>
[[gnu::always_inline]] inline void load_block(const float* block, int64_t width, bool goes_on, Vec (&totals)[num][panels]) {
#pragma GCC unroll 8
  for (int m = 0; m < num; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < panels; ++i) totals[m][i] = goes_on ? load(block + m * width + i * kLanes) : Vec{};
}

template <int num, int panels>
inline void store_block(const Vec (&totals)[num][panels], float* block, int64_t width) {
#pragma GCC unroll 8
  for (int m = 0; m < num; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < panels; ++i) store(block + m * width + i * kLanes, totals[m][i]);
}

// block[m][0..15] = x[m] . panel, and with two panels block[m][16..31] = x[m] . next, for `num` rows of x; `width` floats
// lie between the starts of two rows of block.
template <int num, int panels>
void multiply_rows(const Factors<float>& of, float* block, int64_t width) {
  Vec totals[num][panels];
  load_block(block, width, of.goes_on, totals);
  for (int64_t k = 0; k < of.in; ++k) {
    Vec weights[panels];
    weights[0] = load(of.panel + k * kLanes);
    if constexpr (panels == 2) weights[1] = load(of.next + k * kLanes);
    add_products(totals, of.x + k, of.step, weights);
  }
  store_block(totals, block, width);
}

#if !defined(__AVX512BF16__)
template <int num, int panels>
void multiply_rows(const Factors<BFloat16>& of, float* block, int64_t width) {
  Vec totals[num][panels];
  load_block(block, width, of.goes_on, totals);
  for (int64_t k = 0; k < of.in; k += 2) {
    const auto pairs = [&](const BFloat16* panel) { return load(reinterpret_cast<const float*>(panel + k * kLanes)); };
    Vec weights[panels];  // of the first of two inputs, then of the second: those of both fit no registers of AVX2
    weights[0] = of_pairs<false>(pairs(of.panel));
    if constexpr (panels == 2) weights[1] = of_pairs<false>(pairs(of.next));
    add_products(totals, of.x + k, of.step, weights);
    weights[0] = of_pairs<true>(pairs(of.panel));
    if constexpr (panels == 2) weights[1] = of_pairs<true>(pairs(of.next));
    add_products(totals, of.x + k + 1, of.step, weights);
  }
  store_block(totals, block, width);
}
#else
template <int num, int panels>
void multiply_rows(const Factors<BFloat16>& of, float* block, int64_t width) {
  Vec totals[num][panels];
  load_block(block, width, of.goes_on, totals);
  for (int64_t k = 0; k < of.in; k += 2) {
    __m512bh weights[panels];
    weights[0] = load_pairs(of.panel + k * kLanes);
    if constexpr (panels == 2) weights[1] = load_pairs(of.next + k * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < num; ++m) {
      int32_t pair;
      std::memcpy(&pair, of.x + m * of.step + k, sizeof(pair));
      const auto pairs = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int i = 0; i < panels; ++i) totals[m][i] = (Vec)_mm512_dpbf16_ps((__m512)totals[m][i], weights[i], pairs);
    }
  }
  store_block(totals, block, width);
}
#endif

// Both panels, one after the other where the sums of both do not fit the registers.
template <int num, class T>
void multiply_rows(const Factors<T>& of, float* block, int64_t width) {
  if (!of.next) {
    multiply_rows<num, 1>(of, block, width);
  } else if constexpr (2 * num <= kSums) {
    multiply_rows<num, 2>(of, block, width);
  } else {
    multiply_rows<num, 1>(of, block, width);
    multiply_rows<num, 1>(Factors<T>{of.x, of.step, of.in, of.next, of.next, of.goes_on}, block + kLanes, width);
  }
}

// The same for up to 32 rows.
template <class T>
void multiply_vectors(const Factors<T>& of, int rows, float* block, int64_t width) {
  for (int row = 0; row < rows;) {
    const Factors<T> from{of.x + row * of.step, of.step, of.in, of.panel, of.next, of.goes_on};
    float* to = block + row * width;
    const int left = rows - row;
    if (left >= 8 && kMostRows >= 8) {
      multiply_rows<8>(from, to, width), row += 8;
    } else if (left >= 6 && kMostRows >= 6 && kMostRows < 8) {
      multiply_rows<6>(from, to, width), row += 6;
    } else if (left >= 4 && kMostRows >= 4) {
      multiply_rows<4>(from, to, width), row += 4;
    } else if (left >= 2) {
      multiply_rows<2>(from, to, width), row += 2;
    } else {
      multiply_rows<1>(from, to, width), row += 1;
    }
  }
}

#if defined(__AMX_BF16__) && defined(__linux__)
// Tile registers of 16 rows of 64 bytes: 0 to 3 sums, 4 and 5 inputs, 6 and 7 weights.
bool tiles_granted() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return granted;
}

struct Tiles {
  explicit Tiles(bool used) : used(used) {
    if (!used) return;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // the intrinsic below names the first bytes only
    _tile_loadconfig(&config);
  }
  ~Tiles() {
    if (used) _tile_release();
  }
  bool used;
};

template <int panels>
void multiply_tiles(const Factors<BFloat16>& of, int rows, float* block, int64_t width) {
  const auto& [x, step, in, panel, next, goes_on] = of;
  const BFloat16* lower = x + 16 * step;
  asm volatile("" : : : "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < in; k += 32) {
    _tile_loadd(4, x + k, step * 2);
    _tile_loadd(6, panel + k * kLanes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (panels == 2) {
      _tile_loadd(7, next + k * kLanes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (rows <= 16) continue;
    _tile_loadd(5, lower + k, step * 2);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (panels == 2) _tile_dpbf16ps(3, 5, 7);
  }
  if (rows > 16) {
    _tile_stored(2, block + 16 * width, width * 4);
    if constexpr (panels == 2) _tile_stored(3, block + 16 * width + kLanes, width * 4);
  }
  _tile_stored(0, block, width * 4);
  if constexpr (panels == 2) _tile_stored(1, block + kLanes, width * 4);
}

void multiply_tiles(const Factors<BFloat16>& of, int rows, float* block, int64_t width) {
  if (of.next) {
    multiply_tiles<2>(of, rows, block, width);
  } else {
    multiply_tiles<1>(of, rows, block, width);
  }
}
#else
bool tiles_granted() { return false; }

struct Tiles {
  explicit Tiles(bool) {}
};

void multiply_tiles(const Factors<BFloat16>&, int, float*, int64_t) {}
#endif

inline bool by_tiles(const BFloat16*, int64_t in) { return in % 32 == 0 && tiles_granted(); }
inline bool by_tiles(const float*, int64_t) { return false; }
void multiply_tiles(const Factors<float>&, int, float*, int64_t) {}

// block[m][0..31] = x[m] . two panels, for up to 32 rows; by tiles, x and block have room for 16 or 32 of them.
template <class T>
inline void multiply(const Factors<T>& of, int rows, float* block, int64_t width, bool tiled) {
  if (tiled) {
    multiply_tiles(of, rows, block, width);
  } else {
    multiply_vectors(of, rows, block, width);
  }
}

// A vector's memory, for `count` elements at least; never null, which a product takes for a panel that is not there.
// One that shrank and grew again would be filled with zeros each time.
template <class T>
T* with_room(std::vector<T>& of, int64_t count) {
  if (int64_t(of.size()) <= count) of.resize(count + 1);
  return of.data();
}

// The largest of some scores, and the sum of all weights e^(scaling (score - largest)).
struct Softmax {
  float peak, total;
};

// Write those weights; scores end in -inf where their count is no multiple of 16.
template <class Out>
Softmax exponentials(const float* scores, int64_t count, float scaling, Out* weights) {
  Vec most = filled(-INFINITY), total{};
  for (int64_t t = 0; t < count; t += kLanes) most = larger(load(scores + t), most);
  const float peak = largest(most);
  for (int64_t t = 0; t < count; t += kLanes) {
    const Vec weight = exponential((load(scores + t) - peak) * scaling);
    store(weights + t, weight);
    total += weight;
  }
  return {peak, sum(total)};
}

#include "tree_attention.h"
#include "linear.h"

// Rows of keys or values, (length, size).
template <class T>
struct Rows {
  const T* at;
  int64_t length;
};

// scores[q][t] = queries[q] . keys[t], for queries (num, size) in float; `width` floats lie between two rows of scores.
template <class T>
void scores_of(const float* queries, int num, Rows<T> keys, int64_t size, float* scores, int64_t width) {
  constexpr int together = kSums < kLanes ? 4 : kLanes;  // keys, as many as the registers have room for
  float block[kLanes * 256];
  for (int64_t first = 0; first < keys.length; first += kLanes) {
    const int count = int(std::min<int64_t>(kLanes, keys.length - first));
    const T* key = keys.at + first * size;
    for (int64_t i = 0; i < count * size; i += kLanes) store(block + i, load(key + i));
    if (count < kLanes) std::memset(block + count * size, 0, (kLanes - count) * size * sizeof(float));
    for (int q = 0; q < num; ++q) {
      const float* query = queries + q * size;
      Vec partial[kLanes];
#pragma GCC unroll 4
      for (int of = 0; of < kLanes; of += together) {
        const float* some = block + of * size;
        Vec products[together];
#pragma GCC unroll 16
        for (int t = 0; t < together; ++t) products[t] = load(query) * load(some + t * size);
        for (int64_t d = kLanes; d < size; d += kLanes) {
          const Vec part = load(query + d);
#pragma GCC unroll 16
          for (int t = 0; t < together; ++t) products[t] += part * load(some + t * size + d);
        }
#pragma GCC unroll 16
        for (int t = 0; t < together; ++t) partial[of + t] = products[t];
      }
      store(scores + q * width + first, sums(partial));
    }
  }
}

// out[q] += sum over t of weights[q][t] * values[t], for `num` queries and `parts` vectors of each value.
template <int num, int parts, class T>
void add_values(const float* weights, int64_t width, Rows<T> values, int64_t size, float* out) {
  Vec total[num][parts];
#pragma GCC unroll 6
  for (int q = 0; q < num; ++q)
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) total[q][part] = load(out + q * size + part * kLanes);
  for (int64_t t = 0; t < values.length; ++t) {
    Vec value[parts];
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) value[part] = load(values.at + t * size + part * kLanes);
#pragma GCC unroll 6
    for (int q = 0; q < num; ++q)
#pragma GCC unroll 4
      for (int part = 0; part < parts; ++part) total[q][part] += weights[q * width + t] * value[part];
  }
#pragma GCC unroll 6
  for (int q = 0; q < num; ++q)
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) store(out + q * size + part * kLanes, total[q][part]);
}

template <int num, class T>
void add_values(const float* weights, int64_t width, Rows<T> values, int64_t size, float* out) {
  constexpr int parts = 4 * num <= kSums ? 4 : 2 * num <= kSums ? 2 : 1;  // vectors of a value, that fit registers
  int64_t d = 0;
  for (; d + parts * kLanes <= size; d += parts * kLanes)
    add_values<num, parts>(weights, width, Rows<T>{values.at + d, values.length}, size, out + d);
  for (; d < size; d += kLanes)
    add_values<num, 1>(weights, width, Rows<T>{values.at + d, values.length}, size, out + d);
}

template <class T>
void add_values(int num, const float* weights, int64_t width, Rows<T> values, int64_t size, float* out) {
  switch (num) {
    case 1: return add_values<1>(weights, width, values, size, out);
    case 2: return add_values<2>(weights, width, values, size, out);
    case 3: return add_values<3>(weights, width, values, size, out);
    case 4: return add_values<4>(weights, width, values, size, out);
    case 5: return add_values<5>(weights, width, values, size, out);
    default: return add_values<6>(weights, width, values, size, out);
  }
}

// x / sqrt(mean(x^2) + epsilon) * weight; returns 1 / sqrt(...).
template <class T, class Out>
float normalize(const T* x, const T* weight, int64_t size, float epsilon, Out* out) {
  Vec squares{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (; i < size; ++i) total += to_float(x[i]) * to_float(x[i]);
  const float scale = 1.0f / std::sqrt(total / float(size) + epsilon);
  for (i = 0; i + kLanes <= size; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < size; ++i) out[i] = from_float<Out>(to_float(x[i]) * scale * to_float(weight[i]));
  return scale;
}

// The next two are for the threads of a parallel region together.
template <class T>
void norm_rows(const T* x, const T* weight, T* out, int64_t rows, int64_t size, float epsilon) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) normalize(x + row * size, weight, size, epsilon, out + row * size);
}

// The gradient of the above for x, from that of its result.
template <class T>
void norm_rows_backward(const T* x, const T* weight, const T* grad_out, T* grad_x, int64_t rows, int64_t size,
                        float epsilon) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T *in = x + row * size, *grad = grad_out + row * size;
    Vec squares{}, products{};
    for (int64_t i = 0; i < size; i += kLanes) {
      const Vec value = load(in + i);
      squares += value * value;
      products += value * load(weight + i) * load(grad + i);
    }
    const float mean = sum(squares) / float(size) + epsilon, scale = 1.0f / std::sqrt(mean);
    const float shared = sum(products) / (float(size) * mean);
    for (int64_t i = 0; i < size; i += kLanes)
      store(grad_x + row * size + i, scale * (load(weight + i) * load(grad + i) - shared * load(in + i)));
  }
}

// silu(gate) * up; `stride` elements lie between the starts of two rows of either.
template <class T>
void activate_rows(const T* gate, const T* up, T* out, int64_t rows, int64_t size, int64_t stride) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < size; i += kLanes) {
      const Vec x = load(gate + row * stride + i);
      store(out + row * size + i, x * sigmoid(x) * load(up + row * stride + i));
    }
  }
}

// The gradients of the above for gate and up, all arrays (rows, size).
template <class T>
void activate_rows_backward(const T* gate, const T* up, const T* grad_out, T* grad_gate, T* grad_up, int64_t rows,
                            int64_t size) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = row * size; i < (row + 1) * size; i += kLanes) {
      const Vec x = load(gate + i), grad = load(grad_out + i), part = sigmoid(x);
      store(grad_up + i, grad * x * part);
      store(grad_gate + i, grad * load(up + i) * part * (1.0f + x * (1.0f - part)));
    }
  }
}

// Turn a head by its position's angles: (a, b) to (a cos - b sin, b cos + a sin), a and b its two halves.
template <class T>
void rotate(float* head, const T* cos, const T* sin, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * to_float(cos[i]) - b * to_float(sin[i]);
    head[half + i] = b * to_float(cos[half + i]) + a * to_float(sin[half + i]);
  }
}

// The same of heads (rows, heads, size), half of size a multiple of 16, by (rows, size); or `back`, by the negative angles.
template <class T>
void rotate_rows(const T* from, const T* cos, const T* sin, T* to, int64_t rows, int64_t heads, int64_t size, bool back) {
  const int64_t half = size / 2;
  const float sign = back ? -1.0f : 1.0f;
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < half; i += kLanes) {
      const T *cos_at = cos + row * size + i, *sin_at = sin + row * size + i;
      const Vec cos_a = load(cos_at), cos_b = load(cos_at + half);
      const Vec sin_a = load(sin_at) * sign, sin_b = load(sin_at + half) * sign;
      for (int64_t head = row * heads; head < (row + 1) * heads; ++head) {
        const Vec a = load(from + head * size + i), b = load(from + head * size + half + i);
        store(to + head * size + i, a * cos_a - b * sin_a);
        store(to + head * size + half + i, b * cos_b + a * sin_b);
      }
    }
  }
}

template <class T>
struct Heads {
  const T* cos;  // (rows, size)
  const T* sin;
  float epsilon;
  int64_t size;

  // Write the head of a row in float, normalised if the model does that, and turned.
  void prepare(const T* head, int64_t row, const T* norm_weight, float* out) const {
    if (norm_weight) {
      normalize(head, norm_weight, size, epsilon, out);
    } else {
      for (int64_t i = 0; i < size; i += kLanes) store(out + i, load(head + i));
    }
    rotate(out, cos + row * size, sin + row * size, size);
  }
};

// The layouts below are those of the structures of the same names in operations.py.

// One new token of each sequence that is being decoded, and where the keys and values that it sees lie.
template <class T>
struct Step {
  int64_t rows;
  const int64_t* order;  // rows of one prompt together
  const int64_t* slots;  // of each row's prompt
  const int64_t* prompt_lengths;
  const int64_t* own_positions;
  const T* cos;  // (rows, size)
  const T* sin;
  int64_t prompt_room, own_room;  // tokens of a slot
};

template <class T>
struct Attention {
  int64_t heads, kv_heads, size;
  float scaling, epsilon;  // of the norms
  const T* query_norm;     // (size), or null
  const T* key_norm;
  int64_t window;  // 0: none
  const T* prompt_keys;
  const T* prompt_values;
  T* own_keys;
  T* own_values;
};

// A row of a step, and one of its key heads: where the keys and values that it sees lie, its prompt's and its own.
template <class T>
struct HeadOfRow {
  const Step<T>& step;
  const Attention<T>& layer;
  int64_t row, kv_head;
  int64_t group = layer.heads / layer.kv_heads, size = layer.size;
  int64_t length = step.prompt_lengths[row], own_position = step.own_positions[row];
  int64_t first = layer.window ? std::max<int64_t>(0, length + own_position - layer.window + 1) : 0;  // position seen
  int64_t prompt_first = std::min(first, length), own_first = std::max<int64_t>(0, first - length);
  int64_t prompt_seen = length - prompt_first, own_seen = own_position + 1 - own_first;

  Rows<T> of_prompt(const T* cache, int64_t from) const {
    const int64_t slot = step.slots[row] * layer.kv_heads + kv_head;
    return {cache + (slot * step.prompt_room + from) * size, length - from};
  }
  int64_t in_own(int64_t token) const { return ((row * layer.kv_heads + kv_head) * step.own_room + token) * size; }
  Rows<T> of_own(const T* cache) const { return {cache + in_own(own_first), own_seen}; }

  // Of states (rows, heads + 2 kv_heads, size): write the new key and value to the row's own, and its queries in float.
  void place(const T* states, float* queries) const {
    const Heads<T> prepared{step.cos, step.sin, layer.epsilon, size};
    const T* state = states + row * (layer.heads + 2 * layer.kv_heads) * size;
    const T *key = state + (layer.heads + kv_head) * size, *value = key + layer.kv_heads * size;
    prepared.prepare(key, row, layer.key_norm, queries);
    for (int64_t i = 0; i < size; i += kLanes) {
      store(layer.own_keys + in_own(own_position) + i, load(queries + i));
      store(layer.own_values + in_own(own_position) + i, load(value + i));
    }
    for (int64_t q = 0; q < group; ++q)
      prepared.prepare(state + (kv_head * group + q) * size, row, layer.query_norm, queries + q * size);
  }

  // attended[q] += sum over t of weights[q][t] * values[t].
  void add(const float* weights, int64_t width, Rows<T> values, float* attended) const {
    for (int64_t q = 0; q < group; q += kTile)
      add_values(int(std::min<int64_t>(kTile, group - q)), weights + q * width, width, values, size,
                 attended + q * size);
  }

  // Round what it attended to, to out (rows, heads * size).
  void write(const float* attended, T* out) const {
    T* to = out + (row * layer.heads + kv_head * group) * size;
    for (int64_t i = 0; i < group * size; i += kLanes) store(to + i, load(attended + i));
  }
};

// Scores become weights that sum up to 1; there is room for 16 more scores.
inline void softmax(float* scores, int64_t count, float scaling) {
  for (int lane = 0; lane < kLanes; ++lane) scores[count + lane] = -INFINITY;
  const float inverse = 1.0f / exponentials(scores, count, scaling, scores).total;
  for (int64_t t = 0; t < count; t += kLanes) store(scores + t, load(scores + t) * inverse);
}

// What a thread computes in between; the last four of siblings only.
template <class T>
struct AttentionRoom {
  std::vector<float> queries, attended, scores;
  std::vector<T> queries_out, values_in, weights, rows;
};

template <class T>
void attend(const HeadOfRow<T>& of, const T* states, T* out, AttentionRoom<T>& room) {
  const auto& layer = of.layer;
  const int64_t group = of.group, size = of.size, seen = of.prompt_seen + of.own_seen;
  const int64_t width = seen + 2 * kLanes;  // a block of scores ends past its keys
  float *queries = with_room(room.queries, group * size), *attended = with_room(room.attended, group * size);
  float *scores = with_room(room.scores, group * width), *own_scores = scores + of.prompt_seen;
  of.place(states, queries);
  scores_of(queries, int(group), of.of_prompt(layer.prompt_keys, of.prompt_first), size, scores, width);
  scores_of(queries, int(group), of.of_own(layer.own_keys), size, own_scores, width);
  for (int64_t q = 0; q < group; ++q) softmax(scores + q * width, seen, layer.scaling);
  std::fill(attended, attended + group * size, 0.0f);
  of.add(scores, width, of.of_prompt(layer.prompt_values, of.prompt_first), attended);
  of.add(own_scores, width, of.of_own(layer.own_values), attended);
  of.write(attended, out);
}

// Asks for all of some keys or values: those of a row are too few for the CPU to see by itself where they lead.
template <class T>
[[gnu::always_inline]] inline void ask_for(Rows<T> rows, int64_t size) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < rows.length * size; i += line) __builtin_prefetch(rows.at + i);
}

// scores[q][t] = queries[q] . keys[t], for `num` of the queries of two panels, from `from` on. Keys are read in blocks
// of 32, where they lie if there are `readable` of them, whatever the last ones are: a key has its own row of products.
template <class T>
void scores_by_tiles(const T* queries_out, int64_t from, int64_t num, Rows<T> keys, int64_t readable, int64_t size,
                     T* rows, float* scores, int64_t width) {
  alignas(64) float block[kChunk * kColumns];
  const T* panel = queries_out + from / kLanes * kLanes * size;
  from %= kLanes;
  const T* next = from + num > kLanes ? panel + kLanes * size : nullptr;
  for (int64_t first = 0; first < keys.length; first += kChunk) {
    const int count = int(std::min<int64_t>(kChunk, keys.length - first));
    const T* some = keys.at + first * size;
    if (first + kChunk > readable) gather(some, size, count, size, rows), some = rows;
    multiply(Factors<T>{some, size, size, panel, next}, count, block, kColumns, true);
    for (int64_t q = 0; q < num; ++q)
      for (int t = 0; t < count; ++t) scores[q * width + first + t] = block[t * kColumns + from + q];
  }
}

// One key head of rows that share a prompt, `num` of them from a place of the step's order on, by tiles: the prompt's
// keys and values meet the queries of all of them at once. Which rows these are changes nothing for any of them: its
// sums go by the position of a key, and those which only others see add zeros.
template <class T>
void attend_siblings(const Step<T>& step, const Attention<T>& layer, int64_t place, int64_t num, int64_t kv_head,
                     const T* states, T* out, AttentionRoom<T>& room) {
  const auto sibling = [&](int64_t i) { return HeadOfRow<T>{step, layer, step.order[place + i], kv_head}; };
  const HeadOfRow<T> one = sibling(0);
  const int64_t group = one.group, size = one.size;
  float *queries = with_room(room.queries, kChunk * size), *attended = with_room(room.attended, kChunk * size);
  T *queries_out = with_room(room.queries_out, kChunk * size), *rows = with_room(room.rows, kChunk * size);
  int64_t begin = one.length, most_own = 0;  // the prompt's first key that one of them sees, in whole blocks
  for (int64_t i = 0; i < num; ++i) {
    const HeadOfRow<T> of = sibling(i);
    ask_for(of.of_own(layer.own_keys), size);
    of.place(states, queries + i * group * size);
    begin = std::min(begin, of.prompt_first / kChunk * kChunk);
    most_own = std::max(most_own, of.own_seen);
  }
  for (int64_t i = 0; i < num * group * size; i += kLanes) store(rows + i, load(queries + i));
  pack_outputs(rows, kChunk, size, queries_out);

  const int64_t seen = one.length - begin, padded = whole(seen);
  const int64_t width = seen + most_own + kLanes;
  float *scores = with_room(room.scores, num * group * width), *own_scores = scores + seen;
  T *weights = with_room(room.weights, kChunk * padded), *values_in = with_room(room.values_in, padded * size);
  ask_for(one.of_prompt(layer.prompt_values, begin), size);
  scores_by_tiles(queries_out, 0, num * group, one.of_prompt(layer.prompt_keys, begin), step.prompt_room - begin, size,
                  rows, scores, width);
  for (int64_t i = 0; i < num; ++i) {
    const HeadOfRow<T> of = sibling(i);
    ask_for(of.of_own(layer.own_values), size);
    scores_by_tiles(queries_out, i * group, group, of.of_own(layer.own_keys), step.own_room - of.own_first, size, rows,
                    own_scores + i * group * width, width);
    for (int64_t query = i * group; query < (i + 1) * group; ++query) {
      float* from = scores + query * width;
      T* to = weights + query * padded;
      std::fill(from, from + of.prompt_first - begin, -INFINITY);
      softmax(from, seen + of.own_seen, layer.scaling);
      for (int64_t t = 0; t < seen; t += kLanes) store(to + t, load(from + t));
      std::memset(static_cast<void*>(to + seen), 0, (padded - seen) * sizeof(T));
    }
  }

  const T* values = one.of_prompt(layer.prompt_values, begin).at;
  const int64_t full = seen / kChunk * kChunk;
  pack_inputs(values, full, size, values_in, padded);
  gather(values + full * size, size, seen - full, size, rows);  // no weight of 0 meets what lies behind the last value
  pack_inputs(rows, padded - full, size, values_in + full * kLanes, padded);
  for (int64_t column = 0; column < size; column += kColumns) {
    const T* panel = values_in + column * padded;
    multiply(Factors<T>{weights, padded, padded, panel, panel + padded * kLanes}, int(num * group), attended + column,
             size, true);
  }
  for (int64_t i = 0; i < num; ++i) {
    const HeadOfRow<T> of = sibling(i);
    float* of_row = attended + i * group * size;
    of.add(own_scores + i * group * width, width, of.of_own(layer.own_values), of_row);
    of.write(of_row, out);
  }
}

// Where those of a step's order begin that share a prompt, `most` rows together at most; then where the last ones end.
template <class T>
std::vector<int64_t> starts_of_siblings(const Step<T>& step, int64_t most) {
  std::vector<int64_t> starts;
  const auto slot = [&](int64_t place) { return step.slots[step.order[place]]; };
  for (int64_t place = 0; place < step.rows; ++place)
    if (starts.empty() || place - starts.back() == most || slot(place) != slot(starts.back())) starts.push_back(place);
  starts.push_back(step.rows);
  return starts;
}

// All rows, to out (rows, heads * size), by the threads of a parallel region together.
template <class T>
void attend(const Step<T>& step, const Attention<T>& layer, const T* states, T* out, AttentionRoom<T>& room) {
  const int64_t group = layer.heads / layer.kv_heads;
  const bool tiled = by_tiles(states, layer.size) && group <= kChunk;
  if (tiled) {
    const Tiles tiles(tiled);
    const std::vector<int64_t> starts = starts_of_siblings(step, kChunk / group);
    const int64_t count = int64_t(starts.size()) - 1;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < count * layer.kv_heads; ++task) {
      const int64_t place = starts[task % count], num = starts[task % count + 1] - place;
      attend_siblings(step, layer, place, num, task / count, states, out, room);
    }
  } else {
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < step.rows * layer.kv_heads; ++task)
      attend(HeadOfRow<T>{step, layer, step.order[task % step.rows], task / step.rows}, states, out, room);
  }
}

// A decoder layer of Llama's form.
template <class T>
struct Layer {
  const T* attention_norm;  // (in)
  const T* mlp_norm;
  float epsilon;
  Linear<T> states, output, gate_up, down;
  Attention<T> attention;
};

// hidden (rows, in) through all layers and the norm behind them, in place.
template <class T>
void decode_layers(const Step<T>& step, const Layer<T>* layers, int64_t num_layers, const T* norm, float epsilon,
                   T* hidden) {
  const int64_t rows = step.rows, size = layers[0].states.in, inner_size = layers[0].down.in;
  std::vector<T> normed(rows * size), states(rows * layers[0].states.out), attended(rows * layers[0].output.in),
      gate_up(rows * 2 * inner_size), activated(rows * inner_size);
  int64_t ranks = 0;
  for (const Layer<T>* layer = layers; layer < layers + num_layers; ++layer)
    for (const Linear<T>* linear : {&layer->states, &layer->output, &layer->gate_up, &layer->down})
      ranks = std::max(ranks, linear->ranks);
  std::vector<float> halves(2 * rows * ranks);
#pragma omp parallel
  {
    AttentionRoom<T> attention_room;
    LinearRoom<T> room;
    for (const Layer<T>* layer = layers; layer < layers + num_layers; ++layer) {
      norm_rows(hidden, layer->attention_norm, normed.data(), rows, size, layer->epsilon);
      linear<T>(normed.data(), rows, layer->states, nullptr, states.data(), halves, room);
      attend(step, layer->attention, states.data(), attended.data(), attention_room);
      linear<T>(attended.data(), rows, layer->output, hidden, hidden, halves, room);
      norm_rows(hidden, layer->mlp_norm, normed.data(), rows, size, layer->epsilon);
      linear<T>(normed.data(), rows, layer->gate_up, nullptr, gate_up.data(), halves, room);
      activate_rows(gate_up.data(), gate_up.data() + inner_size, activated.data(), rows, inner_size, 2 * inner_size);
      linear<T>(activated.data(), rows, layer->down, hidden, hidden, halves, room);
    }
    norm_rows(hidden, norm, hidden, rows, size, epsilon);
  }
}

// Of logits = factor * products: the log-probability of each row's target and the entropy of its distribution. With
// `gradient`, the products become those of -log p(target): factor * (p - 1 at the target).
template <class T>
void score_targets(T* products, const int64_t* targets, float* logprobs, float* entropies, int64_t rows, int64_t size,
                   float factor, bool gradient) {
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t row = 0; row < rows; ++row) {
    T* x = products + row * size;
    Vec most = filled(-INFINITY);
    for (int64_t i = 0; i < size; i += kLanes) {
      most = larger(load(x + i) * factor, most);
    }
    const float peak = largest(most);
    double total = 0, mean = 0;  // of e^(logit - peak), and of it times logit - peak
    for (int64_t start = 0; start < size; start += kBlock) {
      Vec weights{}, products_sum{};
      for (int64_t i = start; i < std::min(start + kBlock, size); i += kLanes) {
        const Vec below = load(x + i) * factor - peak, weight = exponential(below);
        weights += weight;
        products_sum += where_positive(weight, weight * below);  // not 0 * -inf
      }
      total += sum(weights);
      mean += sum(products_sum);
    }
    const double log_total = std::log(total);
    logprobs[row] = float(double(to_float(x[targets[row]]) * factor - peak) - log_total);
    entropies[row] = float(log_total - mean / total);
    if (!gradient) continue;
    const float target = factor * (std::exp(logprobs[row]) - 1.0f), scale = float(factor / total);
    for (int64_t i = 0; i < size; i += kLanes) store(x + i, exponential(load(x + i) * factor - peak) * scale);
    x[targets[row]] = from_float<T>(target);
  }
}

// Draw the id where the running sum of softmax(logits / temperature) passes `uniform`, and return its log-probability.
// Two levels: sums of blocks, then the tokens of one block; where rounding leaves none, the last one with weight.
template <class T>
int64_t draw(const T* logits, int64_t size, float inverse_temperature, double uniform, std::vector<double>& totals,
             float* logprob) {
  const auto at = [&](int64_t i) {  // beyond the end as if impossible
    if (i + kLanes <= size) return load(logits + i);
    float lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = i + lane < size ? to_float(logits[i + lane]) : -INFINITY;
    return load(lanes);
  };
  const float peak = [&] {
    Vec most = filled(-INFINITY);
    for (int64_t i = 0; i < size; i += kLanes) most = larger(at(i), most);
    return largest(most);
  }();
  const auto weights = [&](int64_t i) { return exponential((at(i) - peak) * inverse_temperature); };

  totals.clear();
  double total = 0;
  for (int64_t start = 0; start < size; start += kBlock) {
    Vec part{};
    for (int64_t i = start; i < std::min(start + kBlock, size); i += kLanes) part += weights(i);
    totals.push_back(sum(part));
    total += totals.back();
  }

  const double target = uniform * total;
  double below = 0, passed = 0;
  int64_t block = -1;
  for (int64_t i = 0; i < int64_t(totals.size()); ++i) {
    if (totals[i] > 0) block = i, below = passed;
    passed += totals[i];
    if (block == i && passed > target) break;
  }
  int64_t id = -1;
  block = std::max<int64_t>(block, 0);
  for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, size); i += kLanes) {
    float weight[kLanes];
    store(weight, weights(i));
    for (int64_t lane = 0; lane < kLanes && below <= target; ++lane) {
      if (weight[lane] > 0) id = i + lane;
      below += weight[lane];
    }
  }
  id = std::max<int64_t>(id, 0);  // of NaN logits
  *logprob = float(double(to_float(logits[id]) - peak) * inverse_temperature - std::log(total));
  return id;
}

template <class T>
void draw_rows(const T* logits, const double* uniforms, int64_t* ids, float* logprobs, int64_t rows, int64_t size,
               float inverse_temperature) {
#pragma omp parallel
  {
    std::vector<double> totals;
#pragma omp for schedule(dynamic, 1)
    for (int64_t row = 0; row < rows; ++row)
      ids[row] = draw(logits + row * size, size, inverse_temperature, uniforms[row], totals, logprobs + row);
  }
}

}  // namespace

#define POSTTRAIN_EXPORT(T, name)                                                                                      \
  extern "C" void linear_##name(const T* x, int64_t rows, const Linear<T>* layer, const T* other, T* out) {            \
    std::vector<float> halves(2 * rows * layer->ranks);                                                                \
    _Pragma("omp parallel") {                                                                                          \
      LinearRoom<T> room;                                                                                              \
      linear(x, rows, *layer, other, out, halves, room);                                                               \
    }                                                                                                                  \
  }                                                                                                                    \
  extern "C" void decode_layers_##name(const Step<T>* step, const Layer<T>* layers, int64_t num_layers, const T* norm, \
                                       float epsilon, T* hidden) {                                                     \
    decode_layers(*step, layers, num_layers, norm, epsilon, hidden);                                                   \
  }                                                                                                                    \
  extern "C" void attend_##name(const Step<T>* step, const Attention<T>* layer, const T* states, T* out) {             \
    _Pragma("omp parallel") {                                                                                          \
      AttentionRoom<T> room;                                                                                           \
      attend(*step, *layer, states, out, room);                                                                        \
    }                                                                                                                  \
  }                                                                                                                    \
  extern "C" void attend_trees_##name(const Trees* trees, const T* q, const T* k, const T* v, T* out,                  \
                                      float* logsums) {                                                                \
    _Pragma("omp parallel") attend_trees(*trees, q, k, v, out, logsums);                                               \
  }                                                                                                                    \
  extern "C" void attend_trees_backward_##name(const Trees* trees, const T* q, const T* k, const T* v, const T* out,   \
                                               const float* logsums, const T* grad_out, T* grad_q, T* grad_k,          \
                                               T* grad_v, float* parts) {                                              \
    _Pragma("omp parallel")                                                                                            \
        attend_trees_backward(*trees, Attended<T>{q, k, v, out, logsums, grad_out}, grad_q, grad_k, grad_v, parts);    \
  }                                                                                                                    \
  extern "C" void rms_norm_##name(const T* x, const T* weight, T* out, int64_t rows, int64_t size, float epsilon) {    \
    _Pragma("omp parallel") norm_rows(x, weight, out, rows, size, epsilon);                                            \
  }                                                                                                                    \
  extern "C" void rms_norm_backward_##name(const T* x, const T* weight, const T* grad_out, T* grad_x, int64_t rows,    \
                                           int64_t size, float epsilon) {                                              \
    _Pragma("omp parallel") norm_rows_backward(x, weight, grad_out, grad_x, rows, size, epsilon);                      \
  }                                                                                                                    \
  extern "C" void swiglu_##name(const T* gate, const T* up, T* out, int64_t rows, int64_t size, int64_t stride) {      \
    _Pragma("omp parallel") activate_rows(gate, up, out, rows, size, stride);                                          \
  }                                                                                                                    \
  extern "C" void swiglu_backward_##name(const T* gate, const T* up, const T* grad_out, T* grad_gate, T* grad_up,      \
                                         int64_t rows, int64_t size) {                                                 \
    _Pragma("omp parallel") activate_rows_backward(gate, up, grad_out, grad_gate, grad_up, rows, size);                \
  }                                                                                                                    \
  extern "C" void rotate_##name(const T* from, const T* cos, const T* sin, T* to, int64_t rows, int64_t heads,         \
                                int64_t size, int64_t back) {                                                          \
    _Pragma("omp parallel") rotate_rows(from, cos, sin, to, rows, heads, size, back != 0);                             \
  }                                                                                                                    \
  extern "C" void score_targets_##name(T* products, const int64_t* targets, float* logprobs, float* entropies,         \
                                       int64_t rows, int64_t size, float factor, int64_t gradient) {                   \
    score_targets(products, targets, logprobs, entropies, rows, size, factor, gradient != 0);                          \
  }                                                                                                                    \
  extern "C" void draw_##name(const T* logits, const double* uniforms, int64_t* ids, float* logprobs, int64_t rows,    \
                              int64_t size, float inverse_temperature) {                                               \
    draw_rows(logits, uniforms, ids, logprobs, rows, size, inverse_temperature);                                       \
  }

POSTTRAIN_EXPORT(float, float32)
POSTTRAIN_EXPORT(BFloat16, bfloat16)
