// Vectors of 16 floats, and bfloat16 to and from them: included by kernels.cpp.
//
// The vector types of GCC and Clang stay in registers only where the CPU has registers of their size; larger ones GCC
// keeps in memory and computes by parts, many times slower. So 16 floats are one of AVX-512's vectors, a pair of AVX's,
// or pairs of pairs of NEON's and SSE's. What depends on the bits is written for the CPU's vectors, the rest for both.

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kNative = 16;  // floats of the CPU's vectors
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kNative = 8, kRegisters = 16;
#elif defined(__ARM_NEON)
constexpr int kNative = 4, kRegisters = 32;
#else
constexpr int kNative = 4, kRegisters = 16;
#endif
constexpr float kLane[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr int kSums = (kRegisters - 4) * kNative / kLanes;  // vectors of 16 that fit registers beside a product's factors

typedef float Floats __attribute__((vector_size(kNative * 4)));
typedef uint32_t Bits __attribute__((vector_size(kNative * 4)));
typedef uint16_t Halves __attribute__((vector_size(kNative * 2)));

template <class V>
struct Pair {
  V low, high;
};

template <int lanes>
struct VectorOf {
  typedef Pair<typename VectorOf<lanes / 2>::Type> Type;
};
template <>
struct VectorOf<kNative> {
  typedef Floats Type;
};
typedef VectorOf<kLanes>::Type Vec;

template <class V>
constexpr int kLanesOf = sizeof(V) / sizeof(float);

struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

#define POSTTRAIN_LIFT(op)                                                       \
  template <class V>                                                             \
  inline Pair<V> operator op(const Pair<V>& a, const Pair<V>& b) {               \
    return {a.low op b.low, a.high op b.high};                                   \
  }                                                                              \
  template <class V>                                                             \
  inline Pair<V> operator op(const Pair<V>& a, float b) {                        \
    return {a.low op b, a.high op b};                                            \
  }                                                                              \
  template <class V>                                                             \
  inline Pair<V> operator op(float a, const Pair<V>& b) {                        \
    return {a op b.low, a op b.high};                                            \
  }                                                                              \
  template <class V, class Other>                                                \
  inline Pair<V>& operator op##=(Pair<V>& a, const Other& b) {                   \
    return a = a op b;                                                           \
  }
POSTTRAIN_LIFT(+)
POSTTRAIN_LIFT(-)
POSTTRAIN_LIFT(*)
POSTTRAIN_LIFT(/)
#undef POSTTRAIN_LIFT

template <class V>
inline V load_lanes(const float* from) {
  if constexpr (kLanesOf<V> == kNative) {
    V x;
    std::memcpy(&x, from, sizeof(x));
    return x;
  } else {
    typedef decltype(V::low) Half;
    return {load_lanes<Half>(from), load_lanes<Half>(from + kLanesOf<Half>)};
  }
}

template <class V>
inline V load_lanes(const BFloat16* from) {
  if constexpr (kLanesOf<V> == kNative) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return bit_cast<V>(__builtin_convertvector(halves, Bits) << 16);
  } else {
    typedef decltype(V::low) Half;
    return {load_lanes<Half>(from), load_lanes<Half>(from + kLanesOf<Half>)};
  }
}

template <class T>
inline Vec load(const T* from) {
  return load_lanes<Vec>(from);
}

#if defined(__AVX512BF16__)
inline __m512bh load_pairs(const BFloat16* from) {
  __m512bh x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
#endif

// To the nearest bfloat16, ties to even.
inline Halves rounded(Floats x) {
#if defined(__AVX512BF16__)
  return bit_cast<Halves>(_mm512_cvtneps_pbh((__m512)x));
#else
  const Bits bits = bit_cast<Bits>(x);
  const Bits nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits nan = bit_cast<Bits>(x != x);  // all ones where the rounding could overflow
  return __builtin_convertvector((nearest & ~nan) | (nan & 0x7fc0), Halves);
#endif
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof(x)); }

inline void store(BFloat16* to, Floats x) {
  const Halves halves = rounded(x);
  std::memcpy(to, &halves, sizeof(halves));
}

template <class T, class V>
inline void store(T* to, const Pair<V>& x) {
  store(to, x.low);
  store(to + kLanesOf<V>, x.high);
}

// Two inputs of 16 outputs, as a panel has them (see Factors).
inline void store_inputs(float* to, const Vec& first, const Vec& second) {
  store(to, first);
  store(to + kLanes, second);
}

inline void store_inputs(BFloat16* to, Floats first, Floats second) {
  const Bits pairs = __builtin_convertvector(rounded(first), Bits) | (__builtin_convertvector(rounded(second), Bits) << 16);
  std::memcpy(to, &pairs, sizeof(pairs));
}

template <class V>
inline void store_inputs(BFloat16* to, const Pair<V>& first, const Pair<V>& second) {
  store_inputs(to, first.low, second.low);
  store_inputs(to + 2 * kLanesOf<V>, first.high, second.high);
}

inline Vec filled(float x) { return x - Vec{}; }

template <class T>
inline T from_float(float x) {
  T lanes[kLanes];
  store(lanes, filled(x));
  return lanes[0];
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
template <class V>
inline Pair<V> larger(const Pair<V>& a, const Pair<V>& b) {
  return {larger(a.low, b.low), larger(a.high, b.high)};
}

// x where the weight is above 0, else 0.
inline Floats where_positive(Floats weight, Floats x) { return weight > 0.0f ? x : Floats{}; }
template <class V>
inline Pair<V> where_positive(const Pair<V>& weight, const Pair<V>& x) {
  return {where_positive(weight.low, x.low), where_positive(weight.high, x.high)};
}

// 1 where 0 <= x < end, else 0.
inline Floats within(Floats x, float end) { return ((x >= 0.0f) & (x < end)) ? 1.0f - Floats{} : Floats{}; }
template <class V>
inline Pair<V> within(const Pair<V>& x, float end) {
  return {within(x.low, end), within(x.high, end)};
}

inline float sum(Floats x) {
  float total = 0;
#pragma GCC unroll 16
  for (int lane = 0; lane < kNative; ++lane) total += x[lane];
  return total;
}
template <class V>
inline float sum(const Pair<V>& x) {
  return sum(x.low + x.high);
}

inline float largest(Floats x) {
  float most = x[0];
  for (int lane = 1; lane < kNative; ++lane) most = std::max(most, float(x[lane]));
  return most;
}
template <class V>
inline float largest(const Pair<V>& x) {
  return largest(larger(x.low, x.high));
}

// e^x to 2 units in the last place: 2^n times a polynomial on [-ln2 / 2, ln2 / 2] (Cephes); 0 below -87.
inline Floats exponential(Floats x) {
  const Floats clamped = x < -87.0f ? -87.0f - Floats{} : (x > 88.0f ? 88.0f - Floats{} : x);
  const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to a whole number
  const Floats n = shifted - 12582912.0f;
  const Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Floats power = bit_cast<Floats>((bit_cast<Bits>(shifted) << 23) + (127u << 23));
  return x < -87.0f ? Floats{} : p * power;
}
template <class V>
inline Pair<V> exponential(const Pair<V>& x) {
  return {exponential(x.low), exponential(x.high)};
}

// 1 / (1 + e^-x).
inline Vec sigmoid(const Vec& x) { return 1.0f / (1.0f + exponential(0.0f - x)); }

typedef int32_t Places __attribute__((vector_size(kNative * 4)));

// The lanes at these places, which are constants, of two vectors one after the other.
[[gnu::always_inline]] inline Floats lanes_at(Floats a, Floats b, const Places& places) {
#if defined(__clang__)
  Floats lanes;
#pragma unroll
  for (int lane = 0; lane < kNative; ++lane)
    lanes[lane] = places[lane] < kNative ? a[places[lane]] : b[places[lane] - kNative];
  return lanes;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

// Partial sums of two vectors side by side, `step` lanes of the one and of the other in turn.
template <int step>
inline Floats halves_added(Floats a, Floats b) {
  Places low, high;
#pragma GCC unroll 16
  for (int lane = 0; lane < kNative; ++lane) {
    const int place = lane % (2 * step), base = lane - place;
    low[lane] = place < step ? base + place : kNative + base + place - step;
    high[lane] = low[lane] + step;
  }
  return lanes_at(a, b, low) + lanes_at(a, b, high);
}

// The sums of as many vectors as one has lanes, one in each lane; `step` neighbours of each are added up already.
template <class V, int step = 1>
inline V sums(V* x) {
  constexpr int lanes = kLanesOf<V>;
  if constexpr (lanes > kNative) {
    typedef decltype(V::low) Half;
    Half added[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) added[i] = x[i].low + x[i].high;
    return {sums(added), sums(added + lanes / 2)};
  } else if constexpr (step == lanes) {
    return x[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < lanes / (2 * step); ++i) x[i] = halves_added<step>(x[2 * i], x[2 * i + 1]);
    return sums<V, 2 * step>(x);
  }
}

// Of pairs of bfloat16: the first ones, or the second.
template <bool second>
inline Floats of_pairs(Floats x) {
  const Bits pairs = bit_cast<Bits>(x);
  return bit_cast<Floats>(second ? pairs & 0xffff0000 : pairs << 16);
}
template <bool second, class V>
inline Pair<V> of_pairs(const Pair<V>& x) {
  return {of_pairs<second>(x.low), of_pairs<second>(x.high)};
}

// Four floats of every fourth row, side by side.
inline Floats load_quads(const float* from, int64_t step) {
#if defined(__AVX512F__)
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(from));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(from + 4 * step), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(from + 8 * step), 2);
  return (Floats)_mm512_insertf32x4(x, _mm_loadu_ps(from + 12 * step), 3);
#elif defined(__AVX__)
  return (Floats)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + 4 * step), 1);
#else
  return load_lanes<Floats>(from);
#endif
}

// Four columns of as many rows as a vector has lanes.
[[gnu::always_inline]] inline void load_columns(const float* from, int64_t step, Floats (&columns)[4]) {
  Places low, high, even, odd;  // within each four lanes
#pragma GCC unroll 16
  for (int lane = 0; lane < kNative; ++lane) {
    const int base = lane / 4 * 4, place = lane % 4;
    low[lane] = base + place / 2 + (place % 2) * kNative;
    high[lane] = low[lane] + 2;
    even[lane] = base + place % 2 + place / 2 * kNative;
    odd[lane] = even[lane] + 2;
  }
  Floats rows[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = load_quads(from + i * step, step);
  const Floats a = lanes_at(rows[0], rows[1], low), b = lanes_at(rows[2], rows[3], low);
  const Floats c = lanes_at(rows[0], rows[1], high), d = lanes_at(rows[2], rows[3], high);
  columns[0] = lanes_at(a, b, even), columns[1] = lanes_at(a, b, odd);
  columns[2] = lanes_at(c, d, even), columns[3] = lanes_at(c, d, odd);
}
template <class V>
[[gnu::always_inline]] inline void load_columns(const float* from, int64_t step, Pair<V> (&columns)[4]) {
  V low[4], high[4];
  load_columns(from, step, low);
  load_columns(from + kLanesOf<V> * step, step, high);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) columns[i] = {low[i], high[i]};
}

// The rows and columns of a square of vectors change places: first in squares of 2 x 2 of it, then of those, and so on.
template <int step = 1>
inline void turn(Floats (&x)[kNative]) {
  Places upper, lower;
#pragma GCC unroll 16
  for (int lane = 0; lane < kNative; ++lane) {
    upper[lane] = lane & step ? kNative + lane - step : lane;
    lower[lane] = lane & step ? kNative + lane : lane + step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kNative; ++i) {
    if (i & step) continue;
    const Floats a = x[i], b = x[i + step];
    x[i] = lanes_at(a, b, upper), x[i + step] = lanes_at(a, b, lower);
  }
  if constexpr (2 * step < kNative) turn<2 * step>(x);
}

// to (columns, rows) = from (rows, columns), both numbers multiples of the CPU's lanes; steps are those between two rows.
template <class T>
inline void transpose(const T* from, int64_t from_step, int64_t rows, int64_t columns, T* to, int64_t to_step) {
  for (int64_t row = 0; row < rows; row += kNative)
    for (int64_t column = 0; column < columns; column += kNative) {
      Floats square[kNative];
#pragma GCC unroll 16
      for (int i = 0; i < kNative; ++i) square[i] = load_lanes<Floats>(from + (row + i) * from_step + column);
      turn(square);
#pragma GCC unroll 16
      for (int i = 0; i < kNative; ++i) store(to + (column + i) * to_step + row, square[i]);
    }
}
