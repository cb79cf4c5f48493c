// A linear layer and the product of low rank beside it (LoRA, Hu et al. 2021, arXiv 2106.09685) in one pass over its
// result: included by kernels.cpp.
//
// out = x W' + bias + inner U', inner = x D'. Forward W is the layer's weight, D = A and U = scaling B. Its backward pass
// for x is of the same form: x is the gradient of the result, and W', D = scaling B' and U = A' are the layer's transposed.

// The layout below is that of the structure of the same name in operations.py.
struct LoraLinear {
  int64_t rows, in, out, rank;  // of this pass; the last three multiples of 16
  int64_t transposed;           // whether it is backward: the weight lies as (in, out)
  float scaling;
  const void* weight;
  const void* bias;  // (out), or null
  const float* a;    // (rank, in), backward (rank, out)
  const float* b;    // (out, rank), backward (in, rank)
};

// A weight in float by its entries: that of an output and an input lies at output * output_step + input * input_step.
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

// Panels of `width` outputs of the weight from `column` on.
template <class T>
void pack_weight(const LoraLinear& layer, int64_t column, int64_t width, T* panels) {
  const T* weight = static_cast<const T*>(layer.weight);
  if (!layer.transposed) return pack_outputs(weight + column * layer.in, width, layer.in, panels);
  for (int64_t i = 0; i < width; i += kLanes, panels += layer.in * kLanes) {
    const T* from = weight + column + i;
    for (int64_t row = 0; row < layer.in; row += 2)
      store_inputs(panels + row * kLanes, load(from + row * layer.out), load(from + (row + 1) * layer.out));
  }
}

// block (num, 32) = x (num, in) . two panels from those of `outputs` on, or the one that is left.
template <class T>
void multiply_panels(const T* x, int64_t num, int64_t in, const T* panels, int64_t width, float* block) {
  const T* next = width > kLanes ? panels + in * kLanes : nullptr;
  multiply_vectors(Factors<T>{x, in, in, panels, next}, int(num), Nothing(), block, kColumns);
}

template <class T>
void lora_linear(const LoraLinear& layer, const T* x, T* inner, T* out) {
  const auto& [rows, in, width, rank, transposed, scaling, weight, bias, a, b] = layer;
  std::vector<T> down(rank * in), up(width * rank);
  const Entries of_down = transposed ? Entries{b, rank, in, 1, rank, scaling} : Entries{a, rank, in, in, 1, 1.0f};
  const Entries of_up = transposed ? Entries{a, width, rank, 1, width, 1.0f} : Entries{b, width, rank, rank, 1, scaling};
#pragma omp parallel
  {
    alignas(64) float block[kChunk * kColumns], beside[kChunk * kColumns];
    std::vector<T> panels(kColumns * layer.in);
    pack(of_down, down.data()), pack(of_up, up.data());
#pragma omp for schedule(static)
    for (int64_t first = 0; first < layer.rows; first += kChunk) {
      const int64_t num = std::min<int64_t>(kChunk, layer.rows - first);
      for (int64_t column = 0; column < layer.rank; column += kColumns) {
        const int64_t left = std::min<int64_t>(kColumns, layer.rank - column);
        multiply_panels(x + first * layer.in, num, layer.in, down.data() + column * layer.in, left, block);
        for (int64_t m = 0; m < num; ++m)
          for (int64_t i = 0; i < left; i += kLanes)
            store(inner + (first + m) * layer.rank + column + i, load(block + m * kColumns + i));
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t column = 0; column < layer.out; column += kColumns) {
      const int64_t left = std::min<int64_t>(kColumns, layer.out - column);
      pack_weight(layer, column, left, panels.data());
      for (int64_t first = 0; first < layer.rows; first += kChunk) {
        const int64_t num = std::min<int64_t>(kChunk, layer.rows - first);
        multiply_panels(x + first * layer.in, num, layer.in, panels.data(), left, block);
        multiply_panels(inner + first * layer.rank, num, layer.rank, up.data() + column * layer.rank, left, beside);
        for (int64_t m = 0; m < num; ++m)
          for (int64_t i = 0; i < left; i += kLanes) {
            Vec sum = load(block + m * kColumns + i) + load(beside + m * kColumns + i);
            if (layer.bias) sum += load(static_cast<const T*>(layer.bias) + column + i);
            store(out + (first + m) * layer.out + column + i, sum);
          }
      }
    }
  }
}
