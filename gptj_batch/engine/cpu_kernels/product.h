// Products with fixed weights: y = activation(x W' + bias), or x W' + bias + plus, for CPUs without AVX-512.
//
// W is (outputs, inputs), outputs a multiple of 16, packed once: for each DEPTH inputs, for each tile of 16 outputs,
// [input][output], so that a product reads it from end to end. The loops are those of Goto and van de Geijn
// ("Anatomy of high-performance matrix multiplication", 2008): of some rows of x, DEPTH inputs each stay in the second
// cache; a panel of weights, DEPTH x 16, stays in the first while all of these rows take it in turn; ROWS x 16 sums stay in
// registers. What comes next is asked for while this is computed, a little with each input: a panel then is in the second
// cache before its first row, however few rows there are (twice as fast at 6 rows, a third at 16 to 70).
//
// A sum runs over the inputs in their order, whichever rows stand beside it, so a row's result does not depend on them.
#pragma once
#include <type_traits>

#include "vectors.h"

namespace {

constexpr int ROWS = 6;           // whose sums are in registers at once
constexpr int DEPTH = 256;        // inputs; product.py packs the weights by as many
constexpr int ROWS_A_TASK = 192;  // times DEPTH: 192 KiB of the second cache
constexpr int ROWS_WORTH_WIDENING = 4 * ROWS;  // of bfloat16: a panel is turned into float32 once for so many
constexpr int TASKS_A_THREAD = 8;  // so that a thread that another program holds up is not waited for long

inline int64_t divided(int64_t whole, int64_t by) { return (whole + by - 1) / by; }

// Call f with so many rows, or with ROWS where there are more, as a constant.
template <class F>
void with_count(int64_t rows, F f) {
    switch (rows) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        case 4: return f(std::integral_constant<int, 4>());
        case 5: return f(std::integral_constant<int, 5>());
        default: f(std::integral_constant<int, ROWS>());
    }
}

template <class E>
struct Product {
    const E *x, *packed, *plus;
    const float* bias;
    float* groups;  // room for x in another order: for each DEPTH inputs, for each ROWS rows, [input][row]
    float* sums;    // (rows, outputs): in float32 the result itself
    E* result;
    int64_t rows, inputs, outputs;
    bool with_gelu;

    float* group(int64_t row, int64_t input, int64_t depth) const { return groups + input * rows + row * depth; }

    template <int NR>
    void pack(int64_t row) const {
        for (int64_t input = 0; input < inputs; input += DEPTH) {
            const int64_t depth = std::min<int64_t>(DEPTH, inputs - input);
            const E* from = x + row * inputs + input;
            float* to = group(row, input, depth);
            for (int64_t k = 0; k < depth; k++)
                for (int i = 0; i < NR; i++) to[k * NR + i] = to_float(from[i * inputs + k]);
        }
    }

    // Add to the sums of NR rows with a tile of outputs what these inputs give; meanwhile ask for `next`, so many bytes
    // an input.
    template <int NR, class P>
    void add(
        const float* group, const P* panel, int64_t row, int64_t output, int64_t input, int64_t depth, const char* next,
        int64_t step
    ) const {
        float* const to = sums + row * outputs + output;
        for (int i = 0; i < NR; i++) __builtin_prefetch(to + i * outputs, 1);
        Vec acc[NR][PARTS] = {};
#pragma GCC unroll 4
        for (int64_t k = 0; k < depth; k++) {
            Vec weight[PARTS];
            for (int v = 0; v < PARTS; v++) weight[v] = widen(panel + k * TILE + v * LANES);
            __builtin_prefetch(next + k * step, 0, 2);
            for (int i = 0; i < NR; i++)
                for (int v = 0; v < PARTS; v++) acc[i][v] += weight[v] * group[k * NR + i];
        }
        if (input > 0)
            for (int i = 0; i < NR; i++)
                for (int v = 0; v < PARTS; v++) acc[i][v] += load(to + i * outputs + v * LANES);
        for (int i = 0; i < NR; i++)
            for (int v = 0; v < PARTS; v++) store(to + i * outputs + v * LANES, acc[i][v]);
        if (input + depth == inputs) finish(row, NR, output);
    }

    // By itself: beside the loop above it would take the registers that hold the sums.
    __attribute__((noinline)) void finish(int64_t row, int64_t count, int64_t output) const {
        for (int64_t i = row; i < row + count; i++)
            for (int64_t at = i * outputs + output, end = at + TILE; at < end; at += LANES) {
                Vec sum = load(sums + at) + load(bias + (at - i * outputs));
                if (with_gelu) sum = gelu(sum);
                if (plus) sum += widen(plus + at);
                store_rounded(result + at, sum);
            }
    }

    // Rows `first` to `last` with some tiles; a group begins at `first`.
    void run(int64_t first, int64_t last, int64_t first_tile, int64_t last_tile) const {
        const int64_t step = divided(TILE * sizeof(E), divided(last - first, ROWS));
        for (int64_t input = 0; input < inputs; input += DEPTH) {
            const int64_t depth = std::min<int64_t>(DEPTH, inputs - input);
            for (int64_t tile = first_tile; tile < last_tile; tile++) {
                const E* panel = packed + input * outputs + tile * depth * TILE;
                const char* next = reinterpret_cast<const char*>(
                    tile + 1 < last_tile ? panel + depth * TILE : first_panel(input + depth, first_tile));
                if (sizeof(E) == sizeof(float) || last - first < ROWS_WORTH_WIDENING) {
                    add_rows(first, last, panel, tile * TILE, input, depth, next, step);
                } else {
                    alignas(64) float wide[DEPTH * TILE];
                    for (int64_t k = 0; k < depth * TILE; k += LANES) store(wide + k, widen(panel + k));
                    add_rows(first, last, wide, tile * TILE, input, depth, next, step);
                }
            }
        }
    }

    template <class P>
    void add_rows(
        int64_t first, int64_t last, const P* panel, int64_t output, int64_t input, int64_t depth, const char* next,
        int64_t step
    ) const {
        for (int64_t row = first; row < last; row += ROWS, next += depth * step)
            with_count(last - row, [&](auto count) {
                add<count>(group(row, input, depth), panel, row, output, input, depth, next, step);
            });
    }

    const E* first_panel(int64_t input, int64_t tile) const {
        return packed + input * outputs + tile * std::min<int64_t>(DEPTH, inputs - input) * TILE;
    }
};

template <class E>
void run_product(const Product<E>& product, int threads) {
    if (product.rows == 0) return;
    const int64_t tiles = product.outputs / TILE;
    const int64_t rows_each = divided(divided(product.rows, divided(product.rows, ROWS_A_TASK)), ROWS) * ROWS;
    const int64_t row_parts = divided(product.rows, rows_each);
    const int64_t tiles_each = std::max<int64_t>(8, divided(tiles, divided(threads * TASKS_A_THREAD, row_parts)));
    const int64_t tile_parts = divided(tiles, tiles_each);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < product.rows; row += ROWS)
            with_count(product.rows - row, [&](auto count) { product.template pack<count>(row); });
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int64_t i = 0; i < row_parts; i++)
            for (int64_t j = 0; j < tile_parts; j++)
                product.run(
                    i * rows_each, std::min(product.rows, (i + 1) * rows_each), j * tiles_each,
                    std::min(tiles, (j + 1) * tiles_each));
    }
}

}  // namespace
