// Linear layers on few rows, with what their adapters add: included by kernels.cpp.
//
// Weights (outputs, in) are read where torch has them, row by row, so that a model which is trained and the engine that
// generates for it share one copy. By tiles, 16 rows of a weight are the left factor of a product and the inputs of up
// to 32 rows, which are few and turned for that first, the right one; by vectors, panels of a weight are packed on the way.
// What a row of x gives does not depend on the other rows, bit for bit.

// One of the layers that read the same input.
template <class T>
struct Part {
  const void* weight;  // (outputs, in) of T; or of bfloat16 whatever T is, if its linear layer is `narrow`
  const T* outer;      // (outputs, rank): an adapter adds outer @ inner[first : first + rank]; or null
  int64_t outputs, rank, first;
};

// Such layers side by side. All numbers are multiples of 16, and a rank of 32: where it passes the end of inner, outer
// is zeros.
template <class T>
struct Linear {
  const Part<T>* parts;
  const T* bias;   // (out), or null
  const T* inner;  // (ranks, in), or null where no layer has an adapter; the first half of its inputs, then the second
  int64_t in, out, ranks, narrow;

  int64_t first_half() const { return in / (2 * kColumns) * kColumns; }
  int64_t inner_step() const { return whole(ranks + kLanes); }  // elements of a row of x @ inner.T, and zeros behind it
};

constexpr int kRows = 2 * kChunk;  // that meet a block of weights before the next one is read

// Of 16 outputs: their weights, and what an adapter adds to them.
template <class T, class W>
struct Outputs {
  const W* weight;
  const T* outer;
  int64_t rank, first;
};

template <class W, class T>
Outputs<T, W> outputs_from(const Linear<T>& layer, int64_t output) {
  const Part<T>* part = layer.parts;
  for (; output >= part->outputs; ++part) output -= part->outputs;
  return {static_cast<const W*>(part->weight) + output * layer.in, part->outer ? part->outer + output * part->rank : nullptr,
          part->rank, part->first};
}

// Of some rows: `size` inputs, and x @ inner.T; rows of either begin so many elements apart.
template <class T>
struct Inputs {
  const T* x;
  int64_t step, size;
  const T* inner;
  int64_t inner_step;

  Inputs from(int64_t row) const { return {x + row * step, step, size, inner + row * inner_step, inner_step}; }
};

constexpr int64_t kSlice = 128;            // inputs of a weight that are packed at a time
constexpr int kFew = kSums >= 16 ? 4 : 2;  // rows for which nothing is packed

// Asks for what `count` rows of a weight have some lines after input k, past their end for the rows after these: decoding
// waits for memory more than it computes. Always inline: a call whose one effect is this, GCC takes for one without effect.
template <int count, class W>
[[gnu::always_inline]] inline void ask_ahead(const W* weight, int64_t size, int64_t k) {
  constexpr int64_t ahead = 4 * 64 / sizeof(W);
  const int64_t later = k + ahead < size ? k + ahead : k + ahead - size + count * size;
#pragma GCC unroll 32
  for (int i = 0; i < count; ++i) __builtin_prefetch(weight + later + i * size);
}

// Asks for what an adapter adds to 16 outputs, which comes last.
template <class T, class W>
[[gnu::always_inline]] inline void ask_for(const Outputs<T, W>& outputs) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; outputs.outer && i < kLanes * outputs.rank; i += line) __builtin_prefetch(outputs.outer + i);
}

// use(k, weights of 16 outputs) for `count` inputs k of 16 rows of a weight, which begin `size` inputs apart; where x is
// of bfloat16 too, for each pair of them.
template <class T, class W, class Use>
[[gnu::always_inline]] inline void each_input(const W* weight, int64_t size, int64_t begin, int64_t count, const Use& use) {
  constexpr int64_t together = sizeof(float) / sizeof(W), line = 64 / sizeof(W);
  for (int64_t k = begin; k < begin + count; k += line) {
    ask_ahead<kLanes>(weight, size, k);
    for (int64_t at = k; at < std::min(k + line, begin + count); at += 4 * together) {
      Vec columns[4];
      load_columns(reinterpret_cast<const float*>(weight + at), size / together, columns);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(W) < sizeof(T)) {
          use(at + 2 * i, of_pairs<false>(columns[i]));
          use(at + 2 * i + 1, of_pairs<true>(columns[i]));
        } else {
          use(at + together * i, columns[i]);
        }
      }
    }
  }
}

// total += x . weights of one input, or of a pair.
[[gnu::always_inline]] inline void add_product(Vec& total, const float* x, const Vec& weights) { total += *x * weights; }
[[gnu::always_inline]] inline void add_product(Vec& total, const BFloat16* x, const Vec& weights) {
#if defined(__AVX512BF16__)
  int32_t pair;
  std::memcpy(&pair, x, sizeof(pair));
  total = (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(pair));
#else
  total += to_float(x[0]) * of_pairs<false>(weights);
  total += to_float(x[1]) * of_pairs<true>(weights);
#endif
}

// block[m][0..15] = those outputs of `num` rows, without a panel in between.
template <int num, class T, class W>
void multiply_few(const Inputs<T>& of, const Outputs<T, W>& outputs, float* block) {
  Vec totals[num] = {};
  each_input<T>(outputs.weight, of.size, 0, of.size, [&](int64_t k, const Vec& weights) {
#pragma GCC unroll 4
    for (int m = 0; m < num; ++m) add_product(totals[m], of.x + m * of.step + k, weights);
  });
  if (outputs.outer)
    each_input<T>(outputs.outer, outputs.rank, 0, outputs.rank, [&](int64_t k, const Vec& weights) {
#pragma GCC unroll 4
      for (int m = 0; m < num; ++m) add_product(totals[m], of.inner + outputs.first + m * of.inner_step + k, weights);
    });
#pragma GCC unroll 4
  for (int m = 0; m < num; ++m) store(block + m * kColumns, totals[m]);
}

template <class T, class W>
void pack_slice(const W* weight, int64_t size, int64_t begin, int64_t count, T* panel) {
  each_input<T>(weight, size, begin, count, [&](int64_t k, const Vec& weights) {
    store(reinterpret_cast<float*>(panel + (k - begin) * kLanes), weights);  // or pairs
  });
}

// The same for many rows, by panels of slices, with the same sums.
template <class T, class W>
void multiply_many(const Inputs<T>& of, const Outputs<T, W> (&outputs)[2], int rows, float* block) {
  alignas(64) T panels[2][kSlice * kLanes];
  const int halves = outputs[1].weight ? 2 : 1;
  std::fill(block, block + rows * kColumns, 0.0f);
  for (int64_t k = 0; k < of.size; k += kSlice) {
    const int64_t count = std::min(kSlice, of.size - k);
    for (int half = 0; half < halves; ++half) pack_slice(outputs[half].weight, of.size, k, count, panels[half]);
    const T* next = halves == 2 ? panels[1] : nullptr;
    multiply_vectors(Factors<T>{of.x + k, of.step, count, panels[0], next, true}, rows, block, kColumns);
  }
  for (int half = 0; half < halves; ++half) {
    const auto& [weight, outer, rank, first] = outputs[half];
    for (int64_t k = 0; outer && k < rank; k += kSlice) {
      const int64_t count = std::min(kSlice, rank - k);
      pack_slice(outer, rank, k, count, panels[0]);
      multiply_vectors(Factors<T>{of.inner + first + k, of.inner_step, count, panels[0], nullptr, true}, rows,
                       block + half * kLanes, kColumns);
    }
  }
}

template <class T, class W>
void multiply_vectors(const Inputs<T>& of, const Outputs<T, W> (&outputs)[2], int rows, float* block) {
  if (rows > kFew) return multiply_many(of, outputs, rows, block);
  for (int half = 0; half < 2 && outputs[half].weight; ++half, block += kLanes) {
    switch (rows) {
      case 1: multiply_few<1>(of, outputs[half], block); break;
      case 2: multiply_few<2>(of, outputs[half], block); break;
      case 3: multiply_few<std::min(3, kFew)>(of, outputs[half], block); break;
      default: multiply_few<kFew>(of, outputs[half], block);
    }
  }
}

#if defined(__AMX_BF16__) && defined(__linux__)
// Rows for products by tiles, from (rows, size) to (rows / 16, size / 2, 16, 2), zeros where there are no more rows.
void turn_rows(const BFloat16* x, int64_t rows, int64_t size, BFloat16* turned) {
  float few[kLanes * kLanes] = {};
  for (int64_t first = 0; first < rows; first += kLanes) {
    for (int64_t k = 0; k < size; k += 2 * kLanes) {
      const BFloat16* from = x + first * size + k;
      float* to = reinterpret_cast<float*>(turned + first * size + k * kLanes);  // of pairs
      if (first + kLanes <= rows) {
        transpose(reinterpret_cast<const float*>(from), size / 2, kLanes, kLanes, to, kLanes);
      } else {
        for (int64_t m = 0; m < rows - first; ++m) std::memcpy(few + m * kLanes, from + m * size, sizeof(float) * kLanes);
        transpose(few, kLanes, kLanes, kLanes, to, kLanes);
      }
    }
  }
}

// Tile registers: 0 and 1 sums of 16 outputs with 16 rows and with the next 16, 2 and 3 those of the next outputs; 4 and 5
// inputs, 6 and 7 weights.
template <int panels, int groups>
void add_products(const Inputs<BFloat16>& of, const Outputs<BFloat16, BFloat16> (&outputs)[2], bool cold) {
  const int64_t size = of.size, step = of.step * kLanes;
  const BFloat16 *x = of.x, *low = outputs[0].weight, *high = outputs[1].weight;
  for (int64_t k = 0; k < size; k += 2 * kLanes, x += 2 * kLanes * kLanes) {
    if (cold) ask_ahead<kLanes>(low, size, k);
    _tile_loadd(4, x, 64);
    _tile_loadd(6, low + k, size * 2);
    _tile_dpbf16ps(0, 6, 4);
    if constexpr (groups == 2) {
      _tile_loadd(5, x + step, 64);
      _tile_dpbf16ps(1, 6, 5);
    }
    if constexpr (panels == 2) {
      if (cold) ask_ahead<kLanes>(high, size, k);
      _tile_loadd(7, high + k, size * 2);
      _tile_dpbf16ps(2, 7, 4);
      if constexpr (groups == 2) _tile_dpbf16ps(3, 7, 5);
    }
  }
}

// What an adapter adds to them.
template <int panels, int groups>
void add_adapters(const Inputs<BFloat16>& of, const Outputs<BFloat16, BFloat16> (&outputs)[2]) {
  for (int panel = 0; panel < panels; ++panel) {
    const auto& [weight, outer, rank, first] = outputs[panel];
    const BFloat16* x = of.inner + first * kLanes;
    for (int64_t k = 0; outer && k < rank; k += 2 * kLanes, x += 2 * kLanes * kLanes) {
      _tile_loadd(4, x, 64);
      if constexpr (groups == 2) _tile_loadd(5, x + of.inner_step * kLanes, 64);
      _tile_loadd(6, outer + k, rank * 2);
      if (panel == 0) {
        _tile_dpbf16ps(0, 6, 4);
        if constexpr (groups == 2) _tile_dpbf16ps(1, 6, 5);
      } else {
        _tile_dpbf16ps(2, 6, 4);
        if constexpr (groups == 2) _tile_dpbf16ps(3, 6, 5);
      }
    }
  }
}

template <int panels, int groups>
void multiply_tiles(const Inputs<BFloat16>& of, const Outputs<BFloat16, BFloat16> (&outputs)[2], bool cold, float* block) {
  asm volatile("" : : : "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  add_products<panels, groups>(of, outputs, cold);
  add_adapters<panels, groups>(of, outputs);
  alignas(64) float turned[kColumns * kChunk];
  _tile_stored(0, turned, kChunk * 4);
  if constexpr (groups == 2) _tile_stored(1, turned + kLanes, kChunk * 4);
  if constexpr (panels == 2) _tile_stored(2, turned + kLanes * kChunk, kChunk * 4);
  if constexpr (panels == 2 && groups == 2) _tile_stored(3, turned + kLanes * kChunk + kLanes, kChunk * 4);
  transpose(turned, kChunk, panels * kLanes, groups * kLanes, block, kColumns);
}

void multiply_tiles(const Inputs<BFloat16>& of, const Outputs<BFloat16, BFloat16> (&outputs)[2], int rows, float* block) {
  for (int row = 0; row < rows; row += kChunk, block += kChunk * kColumns) {
    const Inputs<BFloat16> from = of.from(row);
    const bool two = outputs[1].weight, more = rows - row > kLanes, cold = row == 0;
    if (two && more) {
      multiply_tiles<2, 2>(from, outputs, cold, block);
    } else if (two) {
      multiply_tiles<2, 1>(from, outputs, cold, block);
    } else if (more) {
      multiply_tiles<1, 2>(from, outputs, cold, block);
    } else {
      multiply_tiles<1, 1>(from, outputs, cold, block);
    }
  }
}
#else
void turn_rows(const BFloat16*, int64_t, int64_t, BFloat16*) {}
void multiply_tiles(const Inputs<BFloat16>&, const Outputs<BFloat16, BFloat16> (&)[2], int, float*) {}
#endif

void turn_rows(const float*, int64_t, int64_t, float*) {}
template <class W>
void multiply_tiles(const Inputs<float>&, const Outputs<float, W> (&)[2], int, float*) {}

// block[m][0..31] = some outputs, 16 or 32 of them, of up to 64 rows; by tiles, these are turned.
template <class T, class W>
void multiply(const Inputs<T>& of, const Outputs<T, W> (&outputs)[2], int rows, float* block, bool tiled) {
  for (const Outputs<T, W>& each : outputs) ask_for(each);
  if (tiled) {
    multiply_tiles(of, outputs, rows, block);
  } else {
    multiply_vectors(of, outputs, rows, block);
  }
}

// What a thread computes in between: up to 64 rows, turned, and their x @ inner.T.
template <class T>
struct LinearRoom {
  std::vector<T> turned, inner, inner_turned;
  int64_t turned_row = -1, inner_row = -1;  // the first one

  // Those from `first` on, as a product reads them.
  Inputs<T> inputs(const T* x, int64_t first, int64_t num, int64_t size, bool tiled) {
    if (!tiled) return {x + first * size, size, size, nullptr, 0};
    T* copy = with_room(turned, kRows * size);
    if (turned_row != first) turn_rows(x + first * size, num, size, copy);
    turned_row = first;
    return {copy, size, size, nullptr, 0};
  }

  // The same with x @ inner.T, the sum of its halves (2, rows, ranks).
  void add_inner(const float* halves, int64_t rows, int64_t ranks, int64_t first, int64_t num, bool tiled, Inputs<T>& to) {
    const int64_t step = to.inner_step;
    T *sums = with_room(inner, kRows * step), *copy = with_room(inner_turned, kRows * step);
    if (inner_row != first) {
      for (int64_t m = 0; m < num; ++m) {
        const float* half = halves + (first + m) * ranks;
        for (int64_t i = 0; i < step; i += kLanes)
          store(sums + m * step + i, i < ranks ? load(half + i) + load(half + rows * ranks + i) : Vec{});
      }
      if (tiled) turn_rows(sums, num, step, copy);
    }
    inner_row = first;
    to.inner = tiled ? copy : sums;
  }
};

// halves (2, rows, ranks) = x @ inner.T, of the first half of the inputs and of the second: there are few outputs to
// share among threads.
template <class T>
void multiply_inner(const T* x, int64_t rows, const Linear<T>& layer, bool tiled, LinearRoom<T>& room, float* halves) {
  const Tiles tiles(tiled);
  alignas(64) float block[kRows * kColumns];
#pragma omp for schedule(static) collapse(3)
  for (int64_t first = 0; first < rows; first += kRows) {
    for (int half = 0; half < 2; ++half) {
      for (int64_t rank = 0; rank < layer.ranks; rank += kLanes) {
        const int num = int(std::min<int64_t>(kRows, rows - first));
        const int64_t begin = half ? layer.first_half() : 0;
        Inputs<T> of = room.inputs(x, first, num, layer.in, tiled);
        of.x += tiled ? begin * kLanes : begin;
        of.size = half ? layer.in - begin : layer.first_half();
        const Outputs<T, T> outputs[2] = {{layer.inner + layer.ranks * begin + rank * of.size, nullptr, 0, 0}, {}};
        multiply(of, outputs, num, block, tiled);
        for (int m = 0; m < num; ++m)
          store(halves + (half * rows + first + m) * layer.ranks + rank, load(block + m * kColumns));
      }
    }
  }
}

// out (rows, out) = x @ weight.T + bias + what adapters add + other, of weights of W.
template <class W, class T>
void linear_of(const T* x, int64_t rows, const Linear<T>& layer, const float* halves, const T* other, T* out, bool tiled,
               LinearRoom<T>& room) {
  const Tiles tiles(tiled);
  const int64_t most = tiled && rows <= kChunk ? kLanes : kColumns;  // outputs at a time
  alignas(64) float block[kRows * kColumns];
#pragma omp for schedule(static) collapse(2)
  for (int64_t first = 0; first < rows; first += kRows) {
    for (int64_t column = 0; column < layer.out; column += most) {
      const int num = int(std::min<int64_t>(kRows, rows - first));
      const int64_t width = std::min(most, layer.out - column);
      Inputs<T> of = room.inputs(x, first, num, layer.in, tiled);
      of.inner_step = layer.inner_step();
      if (layer.inner) room.add_inner(halves, rows, layer.ranks, first, num, tiled, of);
      Outputs<T, W> outputs[2] = {outputs_from<W>(layer, column), {}};
      if (width > kLanes) outputs[1] = outputs_from<W>(layer, column + kLanes);
      multiply(of, outputs, num, block, tiled);
      for (int m = 0; m < num; ++m) {
        const int64_t start = (first + m) * layer.out + column;
        for (int64_t i = 0; i < width; i += kLanes) {
          Vec sum = load(block + m * kColumns + i);
          if (layer.bias) sum += load(layer.bias + column + i);
          if (other) sum += load(other + start + i);
          store(out + start + i, sum);
        }
      }
    }
  }
}

// out (rows, out) = x @ weight.T + bias + what adapters add + other, within a parallel region whose threads call it
// together; halves have room for two times ranks of each row. other, and out, may be one another.
template <class T>
void linear(const T* x, int64_t rows, const Linear<T>& layer, const T* other, T* out, std::vector<float>& halves,
            LinearRoom<T>& room) {
  const bool tiled = by_tiles(x, layer.in);
  room.turned_row = room.inner_row = -1;
  room.inputs(x, 0, std::min<int64_t>(kRows, rows), layer.in, tiled);  // turned by all threads at once
  if (layer.inner) multiply_inner(x, rows, layer, tiled, room, halves.data());
  if (layer.narrow) {
    linear_of<BFloat16>(x, rows, layer, halves.data(), other, out, tiled, room);
  } else {
    linear_of<T>(x, rows, layer, halves.data(), other, out, tiled, room);
  }
}
