// The products of low rank beside a linear layer, forward and backward (LoRA, Hu et al. 2021, arXiv 2106.09685):
// included by kernels.cpp.
//
// out += scaling * (x A') B' in one pass over x and out, which keeps inner = x A'. Backward one pass over rows, for the
// gradients of inner and of x, and one over columns, for those of A and B, so that each sum has one writer.

constexpr int64_t kTokens = 256;  // rows of x that a block of columns is multiplied by at a time

// The layout below is that of the structure of the same name in operations.py.
struct Lora {
  int64_t rows, in, out, rank;  // the last three multiples of 16
  float scaling;
  const float* a;  // (rank, in)
  const float* b;  // (out, rank)
};

// A weight by its entries: that of an output and an input lies at from[output * output_step + input * input_step].
struct Entries {
  const float* from;
  int64_t outputs, inputs, output_step, input_step;
  float scaling;
};

// Panels of such a weight, by the threads of a parallel region together.
template <class T>
void pack(const Entries& of, T* panels) {
  const int64_t pairs = of.inputs / 2;
#pragma omp for schedule(static)
  for (int64_t task = 0; task < of.outputs / kLanes * pairs; ++task) {
    const int64_t output = task / pairs * kLanes, input = task % pairs * 2;
    float entries[2][kLanes];
    for (int odd = 0; odd < 2; ++odd)
      for (int lane = 0; lane < kLanes; ++lane)
        entries[odd][lane] = of.scaling * of.from[(output + lane) * of.output_step + (input + odd) * of.input_step];
    store_inputs(panels + output * of.inputs + input * kLanes, load(entries[0]), load(entries[1]));
  }
}

// The products of some rows of x with all panels of a weight: visit(column, block) for each 32 outputs or the last 16.
template <class T, class Visit>
void for_outputs(const T* x, int num, int64_t in, const T* panels, int64_t outputs, bool tiled, const Visit& visit) {
  alignas(64) float block[kChunk * kColumns];
  for (int64_t column = 0; column < outputs; column += kColumns) {
    const T* panel = panels + column * in;
    multiply(Factors<T>{x, in, in, panel, column + kLanes < outputs ? panel + kLanes * in : nullptr}, num, block, kColumns,
             tiled);
    visit(column, std::min<int64_t>(kColumns, outputs - column), block);
  }
}

// Rows of low rank: from = x @ panels of rank outputs, and to += from @ panels of other outputs, where there is a `to`.
template <class T>
struct LowRank {
  const T* x;
  int64_t in, rank, out;
  const T *down, *up;
  T* to;

  // For `num` rows from `first` on; `rest` has room for 32 of x, `inner` (32, rank) gets theirs.
  void add(int64_t first, int num, std::vector<T>& rest, T* inner) const {
    const bool tiled = by_tiles(x, in);
    const T* from = x + first * in;
    if (tiled && num < kChunk) {
      rest.resize(kChunk * in);
      gather(from, in, num, in, rest.data());
      from = rest.data();
    }
    for_outputs(from, num, in, down, rank, tiled, [&](int64_t column, int64_t width, const float* block) {
      for (int m = 0; m < num; ++m)
        for (int64_t i = 0; i < width; i += kLanes) store(inner + m * rank + column + i, load(block + m * kColumns + i));
    });
    if (!to) return;
    for_outputs(inner, num, rank, up, out, by_tiles(x, rank), [&](int64_t column, int64_t width, const float* block) {
      for (int m = 0; m < num; ++m)
        for (int64_t i = 0; i < width; i += kLanes) {
          T* at = to + (first + m) * out + column + i;
          store(at, load(at) + load(block + m * kColumns + i));
        }
    });
  }
};

// out (rows, out) += scaling * inner @ b', and inner (rows, rank) = x @ a'.
template <class T>
void add_lora(const Lora& lora, const T* x, T* inner, T* out) {
  std::vector<T> a(lora.rank * lora.in), b(lora.out * lora.rank);
  const LowRank<T> product{x, lora.in, lora.rank, lora.out, a.data(), b.data(), out};
#pragma omp parallel
  {
    pack(Entries{lora.a, lora.rank, lora.in, lora.in, 1, 1.0f}, a.data());
    pack(Entries{lora.b, lora.out, lora.rank, lora.rank, 1, lora.scaling}, b.data());
    const Tiles tiles(by_tiles(x, kChunk));
    std::vector<T> rest, rows(kChunk * lora.rank);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < lora.rows; first += kChunk) {
      const int num = int(std::min<int64_t>(kChunk, lora.rows - first));
      product.add(first, num, rest, rows.data());
      std::memcpy(inner + first * lora.rank, rows.data(), num * lora.rank * sizeof(T));
    }
  }
}

// sums (rank, 32) = states (rank, room) @ x, of the columns of x (rows, size) from `column` on, 16 or 32 of them.
template <class T>
void multiply_columns(const T* states, int64_t room, int64_t rank, const T* x, int64_t rows, int64_t size, int64_t column,
                      std::vector<T>& panels, std::vector<float>& sums) {
  const bool tiled = by_tiles(x, kChunk);
  alignas(64) float block[kChunk * kColumns];
  panels.resize(2 * kTokens * kLanes);
  sums.assign(rank * kColumns, 0.0f);
  const int parts = column + kLanes < size ? 2 : 1;
  const T* next = parts == 2 ? panels.data() + kTokens * kLanes : nullptr;
  for (int64_t first = 0; first < rows; first += kTokens) {
    const int64_t num = std::min(kTokens, rows - first), count = whole(num);
    for (int part = 0; part < parts; ++part) {
      T* panel = panels.data() + part * kTokens * kLanes;
      const T* from = x + first * size + column + part * kLanes;
      for (int64_t row = 0; row < count; row += 2)
        store_inputs(panel + row * kLanes, row < num ? load(from + row * size) : Vec{},
                     row + 1 < num ? load(from + (row + 1) * size) : Vec{});
    }
    for (int64_t start = 0; start < rank; start += kChunk) {
      const int states_num = int(std::min<int64_t>(kChunk, rank - start));
      multiply(Factors<T>{states + start * room + first, room, count, panels.data(), next}, states_num, block, kColumns,
               tiled);
      for (int m = 0; m < states_num; ++m)
        for (int i = 0; i < parts * kLanes; i += kLanes) {
          float* to = sums.data() + (start + m) * kColumns + i;
          store(to, load(to) + load(block + m * kColumns + i));
        }
    }
  }
}

// to (columns, room), transposed, of `num` rows, the first of which is the one of that number.
template <class T>
void transpose(const T* rows, int64_t first, int num, int64_t columns, T* to, int64_t room) {
  for (int m = 0; m < num; ++m)
    for (int64_t i = 0; i < columns; ++i) to[i * room + first + m] = rows[m * columns + i];
}

// The gradients of the above, from grad (rows, out) of its result: that for x is added to grad_x, unless it is null;
// grad_a (rank, in) and grad_b (out, rank) in float.
template <class T>
void lora_backward(const Lora& lora, const T* x, const T* inner, const T* grad, T* grad_x, float* grad_a,
                   float* grad_b) {
  const int64_t rank = lora.rank, room = whole(lora.rows), columns_in = (lora.in + kColumns - 1) / kColumns * kColumns;
  std::vector<T> a(rank * lora.in), b(lora.out * rank);
  std::vector<T> by_rank(rank * room), grad_by_rank(rank * room);  // inner and its gradient, transposed; then zeros
  const LowRank<T> product{grad, lora.out, rank, lora.in, b.data(), a.data(), grad_x};
#pragma omp parallel
  {
    pack(Entries{lora.b, rank, lora.out, 1, rank, lora.scaling}, b.data());
    pack(Entries{lora.a, lora.in, rank, 1, lora.in, 1.0f}, a.data());
    const Tiles tiles(by_tiles(x, kChunk));
    std::vector<T> rest, rows(kChunk * rank), panels;
    std::vector<float> sums;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < lora.rows; first += kChunk) {
      const int num = int(std::min<int64_t>(kChunk, lora.rows - first));
      product.add(first, num, rest, rows.data());
      transpose(rows.data(), first, num, rank, grad_by_rank.data(), room);
      transpose(inner + first * rank, first, num, rank, by_rank.data(), room);
    }
#pragma omp for schedule(static)
    for (int64_t place = 0; place < columns_in + lora.out; place += kColumns) {
      if (place < columns_in) {
        const int64_t width = std::min<int64_t>(kColumns, lora.in - place);
        multiply_columns(grad_by_rank.data(), room, rank, x, lora.rows, lora.in, place, panels, sums);
        for (int64_t m = 0; m < rank; ++m)
          std::memcpy(grad_a + m * lora.in + place, sums.data() + m * kColumns, width * sizeof(float));
      } else {
        const int64_t column = place - columns_in, width = std::min<int64_t>(kColumns, lora.out - column);
        multiply_columns(by_rank.data(), room, rank, grad, lora.rows, lora.out, column, panels, sums);
        for (int64_t i = 0; i < width; ++i)
          for (int64_t m = 0; m < rank; ++m)
            grad_b[(column + i) * rank + m] = lora.scaling * sums[m * kColumns + i];
      }
    }
  }
}
