// Attention over a paged key/value cache on a CPU, for float32 and bfloat16.
//
// A block holds P tokens (a multiple of 16) of every head. Of one head it holds P / 16 tiles of 16 tokens each, laid
// out so that no product needs a shuffle or a horizontal sum:
//     keys,   float32:  [channel][token]             16 tokens are one vector
//     keys,   bfloat16: [channel / 2][token][2]      16 tokens, two channels each, are one vector
//     values, float32:  [token][channel]
//     values, bfloat16: [token / 2][channel][2]
// Channels are padded with zeros to a multiple of 16.
//
// Every sum has one order, whatever stands beside it: a score is summed over channels, a softmax over vectors of keys in
// the order of the sequence, an output over tokens in that order. So a token's result is the same, bit for bit, whether
// it is computed alone or in a chunk, in whatever company, with its context computed now or found in the cache.
//
// A library has the functions of one type, GPTJ_ELEMENT: a first use should compile no more than it needs.
//
// Template parameters:
//     E   what the cache holds: float, or uint16_t for bfloat16
//     NQ  queries of one sequence that are computed together, at most QUERIES, and share each load
//     NT  tiles of keys whose scores are computed together
//     NV  vectors of channels of the values that are summed together
#include "product.h"
#include "vectors.h"

namespace {

constexpr int QUERIES = 6;  // that share each load of a key or value

struct Shape {
    int heads, channels, padded, rotary, block_tokens;
    float scale;
    size_t tile() const { return size_t(TILE) * padded; }
    size_t page() const { return size_t(block_tokens) * padded; }
};

// A stretch of query rows that belong to one sequence.
struct Run {
    int32_t row, count;    // the first row, and how many
    int32_t first;         // how many keys stand before the first query's own
    int32_t table;         // where its block numbers begin
    int32_t masked;        // from here on a mask says which keys are seen; -1: each query sees all up to its own
    int32_t num_keys;      // all keys of a masked run
    int32_t mask;          // where its mask begins: count rows of num_keys - masked bytes
    int32_t slot;          // where a single query's own key and value are still to be stored; -1: they are
    int32_t keys_of(int query) const { return masked < 0 ? first + query + 1 : num_keys; }
};

// Where one head's tile of 16 tokens stands.
template <class E>
struct Tiles {
    const E* base; const int32_t* table; const Shape* shape; int head;
    const E* operator[](int tile) const {
        const int per_block = shape->block_tokens / TILE;
        const size_t page = size_t(table[tile / per_block]) * shape->heads + head;
        return base + page * shape->page() + (tile % per_block) * shape->tile();
    }
};

// What a single query reads, tile after tile: its keys, its values, the keys of the query that comes next. One query
// gives the memory nothing to do while it computes, and every tile is a new page: without asking ahead, half as fast.
template <class E>
struct Stream {
    const Tiles<E>* parts[3];
    int counts[3];
    const char* at(int tile) const {
        for (int part = 0; part < 3; part++) {
            if (tile < counts[part]) return reinterpret_cast<const char*>((*parts[part])[tile]);
            tile -= counts[part];
        }
        return nullptr;
    }
};
constexpr int AHEAD = 4;  // tiles

// Tokens of one sequence whose keys and values go to one tile; a slot is block * block_tokens + offset.
struct Write {
    int32_t row, count, slot;
};

inline void ask_for(const char* tile, size_t offset) {
    if (tile) __builtin_prefetch(tile + offset, 0, 2);
}

// Scores of NQ queries against NT tiles.
template <class E, int NQ, int NT>
void score_tiles(
    const E* const* query, const Tiles<E>& keys, int tile, float* scores, size_t stride, const Shape& s,
    const Stream<E>& stream
) {
    constexpr int NV = NT * PARTS;
    Vec acc[NQ][NV] = {};
    const E* k[NT];
    const char* ahead[NT];
    for (int t = 0; t < NT; t++) k[t] = keys[tile + t];
    if constexpr (NQ == 1)
        for (int t = 0; t < NT; t++) ahead[t] = stream.at(tile + t + AHEAD);
    if constexpr (sizeof(E) == 2) {
        for (int c = 0; c < s.padded; c += 2) {
            IVec key[NV];
            for (int v = 0; v < NV; v++) key[v] = load_pairs(k[v / PARTS] + c * TILE + v % PARTS * LANES * 2);
            if constexpr (NQ == 1)
                for (int t = 0; t < NT; t++) ask_for(ahead[t], c * TILE * sizeof(E));
            for (int q = 0; q < NQ; q++) {
                int32_t pair; std::memcpy(&pair, query[q] + c, 4);
                for (int v = 0; v < NV; v++) acc[q][v] = dot_pairs(acc[q][v], key[v], pair);
            }
        }
    } else {
        for (int c = 0; c < s.padded; c++) {
            Vec key[NV];
            for (int v = 0; v < NV; v++) key[v] = load(k[v / PARTS] + c * TILE + v % PARTS * LANES);
            if constexpr (NQ == 1)
                for (int t = 0; t < NT; t++) ask_for(ahead[t], c * TILE * sizeof(E));
            for (int q = 0; q < NQ; q++)
                for (int v = 0; v < NV; v++) acc[q][v] += key[v] * query[q][c];
        }
    }
    for (int q = 0; q < NQ; q++)
        for (int v = 0; v < NV; v++) store(scores + q * stride + tile * TILE + v * LANES, acc[q][v] * s.scale);
}

// Scores against all tiles from `tile` on, NT of them at once as long as there are so many.
template <class E, int NQ, int NT>
void score_all(
    const E* const* query, const Tiles<E>& keys, int tile, int num_tiles, float* scores, size_t stride, const Shape& s,
    const Stream<E>& stream
) {
    for (; tile + NT <= num_tiles; tile += NT) score_tiles<E, NQ, NT>(query, keys, tile, scores, stride, s, stream);
    if constexpr (NT > 1) score_all<E, NQ, NT - 1>(query, keys, tile, num_tiles, scores, stride, s, stream);
}

// Weighted values of NQ queries, NV vectors of channels from `channel` on.
template <class E, int NQ, int NV>
void mix_channels(
    const E* const* weights, const Tiles<E>& values, int num_keys, int channel, float* out, size_t stride,
    const Shape& s, const Stream<E>& stream
) {
    Vec acc[NQ][NV] = {};
    for (int tile = 0; tile * TILE < num_keys; tile++) {
        const E* from = values[tile];
        const int count = std::min(TILE, num_keys - tile * TILE);
        const char* ahead = nullptr;
        if constexpr (NQ == 1)
            if (channel == 0) ahead = stream.at(stream.counts[0] + tile + AHEAD);
        if constexpr (sizeof(E) == 2) {
            for (int j = 0; j < count; j += 2) {
                IVec value[NV];
                if constexpr (NQ == 1)
                    for (size_t line = 0; line < s.padded * 4u; line += 64)
                        ask_for(ahead, size_t(j) * s.padded * 2 + line);
                for (int v = 0; v < NV; v++) {
                    value[v] = load_pairs(from + (size_t(j) * s.padded + (channel + v * LANES) * 2));
                    if (j + 1 == count) value[v] &= 0xffff;  // nothing is known of what stands behind the last token
                }
                for (int q = 0; q < NQ; q++) {
                    int32_t pair; std::memcpy(&pair, weights[q] + tile * TILE + j, 4);
                    for (int v = 0; v < NV; v++) acc[q][v] = dot_pairs(acc[q][v], value[v], pair);
                }
            }
        } else {
            for (int j = 0; j < count; j++) {
                Vec value[NV];
                if constexpr (NQ == 1)
                    for (size_t line = 0; line < s.padded * 4u; line += 64)
                        ask_for(ahead, size_t(j) * s.padded * 4 + line);
                for (int v = 0; v < NV; v++) value[v] = load(from + size_t(j) * s.padded + channel + v * LANES);
                for (int q = 0; q < NQ; q++)
                    for (int v = 0; v < NV; v++) acc[q][v] += value[v] * weights[q][tile * TILE + j];
            }
        }
    }
    for (int q = 0; q < NQ; q++)
        for (int v = 0; v < NV; v++) store(out + q * stride + channel + v * LANES, acc[q][v]);
}

// Turn the first `rotary` channels, pair by pair, in float32; pass the rest through, and fill up with zeros.
template <class E>
void rotate(const E* from, E* to, const float* cosine, const float* sine, const Shape& s) {
    int i = 0;  // pair
    if constexpr (sizeof(E) == 2)
        for (; i + LANES <= s.rotary / 2; i += LANES) {
            const IVec pairs = load_pairs(from + 2 * i);
            const Vec even = (Vec)(pairs << 16), odd = (Vec)(pairs & int32_t(0xffff0000));
            const Vec c = load(cosine + i), d = load(sine + i);
            const IVec first = round_bits(even * c - odd * d), second = round_bits(odd * c + even * d);
            const IVec both = ((first >> 16) & 0xffff) | (second & int32_t(0xffff0000));
            std::memcpy(to + 2 * i, &both, sizeof both);
        }
    for (; i < s.rotary / 2; i++) {
        const float even = to_float(from[2 * i]), odd = to_float(from[2 * i + 1]);
        assign(to[2 * i], even * cosine[i] - odd * sine[i]);
        assign(to[2 * i + 1], odd * cosine[i] + even * sine[i]);
    }
    std::memcpy(to + s.rotary, from + s.rotary, (s.channels - s.rotary) * sizeof(E));
    std::memset(to + s.channels, 0, (s.padded - s.channels) * sizeof(E));
}

template <class E>
struct Call {
    Shape shape;
    const E* qkv; size_t qkv_stride;
    E* out; size_t out_stride;
    E *keys, *values;
    const float *cosine, *sine;
    const int32_t* tables;
    const uint8_t* mask;

    // Rotate one head's part of a token's query (which = 0) or key (which = 1).
    void rotate_token(size_t token, int which, int head, E* to) const {
        const size_t column = (size_t(which) * shape.heads + head) * shape.channels;
        const size_t angle = token * (shape.rotary / 2);
        rotate(qkv + token * qkv_stride + column, to, cosine + angle, sine + angle, shape);
    }

    // Store keys and values of one head. Whole tiles are written line by line: a token alone touches every line.
    void write(const Write& w, int head, E* rotated) const {
        const Shape& s = shape;
        const size_t offset = w.slot % s.block_tokens, lane = offset % TILE, width = size_t(s.heads) * s.channels;
        const size_t tile = (size_t(w.slot / s.block_tokens) * s.heads + head) * s.page() + offset / TILE * s.tile();
        E *to_keys = keys + tile, *to_values = values + tile;
        for (int i = 0; i < w.count; i++) rotate_token(w.row + i, 1, head, rotated + i * s.padded);
        constexpr int GROUP = sizeof(E) == 2 ? 2 : 1;  // channels of a key that stand side by side
        for (int c = 0; c < s.padded; c += GROUP)
            for (int i = 0; i < w.count; i++)
                std::memcpy(to_keys + c * TILE + (lane + i) * GROUP, rotated + i * s.padded + c, GROUP * sizeof(E));
        for (int i = 0; i < w.count; i++) {
            const E* value = qkv + (w.row + i) * qkv_stride + head * s.channels + 2 * width;
            const size_t token = lane + i;
            E* to = to_values + token / GROUP * GROUP * s.padded + token % GROUP;
            for (int c = 0; c < s.channels; c++) to[c * GROUP] = value[c];
            for (int c = s.channels; c < s.padded; c++) to[c * GROUP] = 0;
        }
    }

    // Attend with NQ queries of a run, from its query `first` on; `next` is what this thread will probably read next.
    // scratch: rotated queries, sums of values, scores, weights; in float32 a weight takes its score's place.
    template <int NQ>
    void attend(const Run& run, int first, int head, char* scratch, const Run* next) const {
        const Shape& s = shape;
        const int num_keys = run.keys_of(first + NQ - 1), num_tiles = (num_keys + TILE - 1) / TILE;
        const size_t stride = size_t(num_tiles) * TILE;
        E* rotated = reinterpret_cast<E*>(scratch);
        float* mixed = reinterpret_cast<float*>(rotated + size_t(QUERIES) * s.padded);
        float* scores = mixed + size_t(QUERIES) * s.padded;
        E* weights = sizeof(E) == 4 ? reinterpret_cast<E*>(scores) : reinterpret_cast<E*>(scores + NQ * stride);
        if (NQ == 1 && run.slot >= 0) write({run.row, 1, run.slot}, head, rotated);
        const E *query[NQ], *weight[NQ];
        for (int q = 0; q < NQ; q++) {
            rotate_token(run.row + first + q, 0, head, rotated + q * s.padded);
            query[q] = rotated + q * s.padded;
            weight[q] = weights + q * stride;
        }
        const Tiles<E> key_tiles{keys, tables + run.table, &s, head}, value_tiles{values, tables + run.table, &s, head};
        const Tiles<E> next_tiles{keys, next ? tables + next->table : nullptr, &s, head};
        const int num_next = NQ == 1 && next ? std::min(AHEAD, (next->keys_of(0) + TILE - 1) / TILE) : 0;
        const Stream<E> stream{{&key_tiles, &value_tiles, &next_tiles}, {num_tiles, num_tiles, num_next}};
        constexpr int NT = fitting(NQ, 4 * PARTS) / PARTS, NV = fitting(NQ, NQ == 1 ? 8 : 4);
        score_all<E, NQ, NT>(query, key_tiles, 0, num_tiles, scores, stride, s, stream);
        float total[NQ];
        for (int q = 0; q < NQ; q++)
            total[q] = soften(scores + q * stride, weights + q * stride, num_tiles, run, first + q);
        int channel = 0;
        for (; channel + NV * LANES <= s.padded; channel += NV * LANES)
            mix_channels<E, NQ, NV>(weight, value_tiles, num_keys, channel, mixed, s.padded, s, stream);
        for (; channel < s.padded; channel += TILE)
            mix_channels<E, NQ, PARTS>(weight, value_tiles, num_keys, channel, mixed, s.padded, s, stream);
        for (int q = 0; q < NQ; q++) {
            E* to = out + (run.row + first + q) * out_stride + head * s.channels;
            const float share = 1.0f / total[q], *from = mixed + q * s.padded;
            int c = 0;
            for (; c + LANES <= s.channels; c += LANES) store_rounded(to + c, load(from + c) * share);
            for (; c < s.channels; c++) assign(to[c], from[c] * share);
        }
    }

    // Hide what the query may not see, then turn its scores into weights in place; returns their sum.
    float soften(float* scores, E* weights, int num_tiles, const Run& run, int query) const {
        const float hidden = -std::numeric_limits<float>::infinity();
        for (int j = run.keys_of(query); j < num_tiles * TILE; j++) scores[j] = hidden;
        if (run.masked >= 0) {
            const int width = run.num_keys - run.masked;
            const uint8_t* seen = mask + run.mask + size_t(query) * width;
            for (int j = 0; j < width; j++)
                if (!seen[j]) scores[run.masked + j] = hidden;
        }
        Vec most = splat(hidden);
        for (int j = 0; j < num_tiles * TILE; j += LANES) {
            const Vec x = load(scores + j);
            most = x > most ? x : most;
        }
        const Vec highest = splat(max_lanes(most));
        Vec total = {};
        for (int j = 0; j < num_tiles * TILE; j += LANES) {
            const Vec weight = exp_vec(load(scores + j) - highest);
            total += weight;
            store_rounded(weights + j, weight);
        }
        return sum_lanes(total);
    }
};

// One part of a run, which is attended to at once.
struct Item {
    int32_t run, first, count;
};

template <class E>
void run_layer(
    const Call<E>& call, const Write* writes, int num_writes, const Run* runs, const Item* items, int num_items,
    int max_keys, int threads
) {
    const Shape& s = call.shape;
    const size_t keys = size_t((max_keys + TILE - 1) / TILE) * TILE;
    const size_t to_attend = QUERIES * (s.padded * (sizeof(E) + 4) + keys * 8), to_write = TILE * s.padded * sizeof(E);
    const size_t bytes = std::max(to_attend, to_write) + 256;
#pragma omp parallel num_threads(threads)
    {
        char* scratch = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
#pragma omp for collapse(2) schedule(static)
        for (int head = 0; head < s.heads; head++)
            for (int i = 0; i < num_writes; i++) call.write(writes[i], head, reinterpret_cast<E*>(scratch));
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (int head = 0; head < s.heads; head++)
            for (int i = 0; i < num_items; i++) {
                const Run& run = runs[items[i].run];
                const int first = items[i].first;
                const Run* next = i + 1 < num_items ? &runs[items[i + 1].run] : nullptr;
                switch (items[i].count) {
                    case 1: call.template attend<1>(run, first, head, scratch, next); break;
                    case 2: call.template attend<2>(run, first, head, scratch, next); break;
                    case 3: call.template attend<3>(run, first, head, scratch, next); break;
                    case 4: call.template attend<4>(run, first, head, scratch, next); break;
                    case 5: call.template attend<5>(run, first, head, scratch, next); break;
                    default: call.template attend<6>(run, first, head, scratch, next);
                }
            }
        std::free(scratch);
    }
}

// What Python tells; `LayerArguments` in call.py is the same.
struct LayerArguments {
    int32_t num_writes, heads, channels, rotary, block_tokens, num_items, max_keys, threads;
    float scale;
    int64_t qkv_stride, out_stride;
    void *qkv, *out, *keys, *values;
    const float *cosine, *sine;
    const Write* writes;
    const int32_t* tables;
    const Run* runs;
    const Item* items;
    const uint8_t* mask;
};

template <class E>
void attend_layer(const LayerArguments& a, const Shape& shape) {
    const Call<E> call{
        shape, (const E*)a.qkv, size_t(a.qkv_stride), (E*)a.out, size_t(a.out_stride), (E*)a.keys, (E*)a.values,
        a.cosine, a.sine, a.tables, a.mask};
    run_layer(call, a.writes, a.num_writes, a.runs, a.items, a.num_items, a.max_keys, a.threads);
}

// One row's highest value: the first of equals, and whether all of them are finite.
template <class E>
void find_best(const E* row, int64_t count, int64_t* index, uint8_t* is_finite) {
    int64_t best = 0;
    float highest = -std::numeric_limits<float>::infinity();
    IVec odd = {};
    for (int64_t first = 0; first < count; first += 1024) {
        const int64_t stop = std::min(first + 1024, count);
        Vec most = splat(highest);
        int64_t i = first;
        for (; i + LANES <= stop; i += LANES) {
            const Vec x = widen(row + i);
            most = x > most ? x : most;
            odd |= ((IVec)x & 0x7f800000) == 0x7f800000;
        }
        float here = max_lanes(most);
        for (; i < stop; i++) {
            const float x = to_float(row[i]);
            here = x > here ? x : here;
            if (!(x - x == 0.0f)) odd[0] = -1;
        }
        if (here > highest) {
            highest = here;
            best = first;
            while (to_float(row[best]) != here) best++;
        }
    }
    int any = 0;
    for (int i = 0; i < LANES; i++) any |= odd[i];
    *index = best;
    *is_finite = any == 0;
}

// One row to whole numbers: value = scale * (number - 128).
template <class E>
void quantize_row(const E* from, int64_t count, uint8_t* to, float* scale) {
    // Without their signs floats are in the order of their bits, NaN above all: its row's scale is NaN, and so is
    // whatever comes of it.
    IVec most = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const IVec bits = (IVec)widen(from + i) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    for (; i < count; i++) {
        const IVec bits = (IVec)splat(to_float(from[i])) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    int32_t highest_bits = 0;
    for (int lane = 0; lane < LANES; lane++) highest_bits = std::max<int32_t>(highest_bits, most[lane]);
    float highest;
    std::memcpy(&highest, &highest_bits, sizeof highest);
    *scale = highest == 0.0f ? 1.0f : highest / 127.0f;
    const float inverse = 1.0f / *scale;
    for (i = 0; i + LANES <= count; i += LANES) {
        typedef uint8_t Bytes __attribute__((vector_size(LANES)));
        const Vec magic = splat(12582912.0f + 128.0f);  // 1.5 * 2^23: its last bits take the nearest whole number
        const Bytes bytes = __builtin_convertvector((IVec)(widen(from + i) * inverse + magic) & 0xff, Bytes);
        std::memcpy(to + i, &bytes, sizeof bytes);
    }
    for (; i < count; i++) to[i] = uint8_t(std::nearbyint(to_float(from[i]) * inverse) + 128.0f);
}

template <class E>
void finish_row(
    const float* from, int64_t count, float scale, const float* bias, const E* plus, bool with_gelu, E* to
) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Vec x = load(from + i) * scale + load(bias + i);
        if (with_gelu) x = gelu(x);
        if (plus) x += widen(plus + i);
        store_rounded(to + i, x);
    }
    for (; i < count; i++) {
        Vec x = splat(from[i] * scale + bias[i]);
        if (with_gelu) x = gelu(x);
        if (plus) x += to_float(plus[i]);
        assign(to[i], x[0]);
    }
}

using Element = GPTJ_ELEMENT;

}  // namespace

extern "C" {

// Write the keys and values of the step's tokens, then let its queries attend.
void gptj_attend(const LayerArguments* a) {
    const int padded = (a->channels + TILE - 1) / TILE * TILE;
    const Shape shape{a->heads, a->channels, padded, a->rotary, a->block_tokens, a->scale};
    attend_layer<Element>(*a, shape);
}

// The highest of each row of (rows, count): its index, and whether the row is finite throughout.
void gptj_best(
    const Element* scores, int64_t rows, int64_t count, int64_t* index, uint8_t* is_finite, int32_t threads
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) find_best(scores + row * count, count, index + row, is_finite + row);
}

// Each row of (rows, count) to 8 bits by itself, so that no row's numbers depend on another's.
void gptj_quantize(
    const Element* from, int64_t rows, int64_t count, uint8_t* to, float* scales, int32_t threads
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) quantize_row(from + row * count, count, to + row * count, scales + row);
}

// A product's rows: times their scale, plus bias, GELU if asked for, plus another term if there is one.
void gptj_finish(
    const float* from, const float* scales, const float* bias, const Element* plus, int32_t with_gelu, int64_t rows,
    int64_t count, Element* to, int32_t threads
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * count;
        finish_row(from + at, count, scales[row], bias, plus ? plus + at : nullptr, with_gelu, to + at);
    }
}

// (rows, outputs): x with weights that were packed for it; see product.h.
void gptj_multiply(
    const Element* x, const Element* packed, const float* bias, const Element* plus, int32_t with_gelu, int64_t rows,
    int64_t inputs, int64_t outputs, float* groups, float* sums, Element* result, int32_t threads
) {
    run_product(
        Product<Element>{x, packed, plus, bias, groups, sums, result, rows, inputs, outputs, with_gelu != 0}, threads);
}
}
