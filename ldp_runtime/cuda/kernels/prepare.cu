// prepare: the pair, scaled, padded, flipped and normalised, in one read of the photo.
//
// A thread takes 4 px of a row of the (extended) padded frame: it loads them once from both views and writes them
// wherever they belong, to the pair and to each window of CLIP over them. Reading once and scattering costs no
// atomics, as every output is written by one thread only.
//
// Bytes: 6 (8 bit) or 12 (16 bit) per px read; 24 per px of pair, 18 (FP16) or 36 (FP32) a px of a window written.
// Loads: 12 B of HWC as three 32-bit words (24 B as three 64-bit words), rows at any alignment by a funnel shift.
// Stores: 128 bits of FP32 or 64 of FP16 a thread and channel, neighbours side by side, so each sector is written
// whole by one instruction; the flipped view is turned in registers.
#include "common.cuh"

// 3 * 4 elements from p, as 32-bit words. May read the words' other bytes: 3 B before p and 3 B behind the strip.
template <typename Pixel>
LDP_DEVICE void load_words(const Pixel* p, unsigned int* words) {
    constexpr int n = 3 * kStrip * sizeof(Pixel) / 4;
    if (sizeof(Pixel) == 2 && aligned(p, 8)) {
        const uint2* from = reinterpret_cast<const uint2*>(p);
#pragma unroll
        for (int i = 0; i < n / 2; ++i) {
            const uint2 two = __ldg(from + i);
            words[2 * i] = two.x;
            words[2 * i + 1] = two.y;
        }
        return;
    }
    const unsigned int shift = 8 * (reinterpret_cast<size_t>(p) & 3);
    const unsigned int* from = reinterpret_cast<const unsigned int*>(reinterpret_cast<size_t>(p) & ~size_t(3));
#pragma unroll
    for (int i = 0; i < n; ++i) words[i] = __ldg(from + i);
    if (shift == 0) return;
    const unsigned int last = __ldg(from + n);
#pragma unroll
    for (int i = 0; i < n; ++i) words[i] = __funnelshift_r(words[i], i + 1 < n ? words[i + 1] : last, shift);
}

template <typename Pixel>
LDP_DEVICE float to_unit(unsigned int value) {
    constexpr float top = sizeof(Pixel) == 1 ? 255.0f : 65535.0f;
    return divide(static_cast<float>(value), top, 1.0f / top);
}

// The 4 px from x on of a row of a view, in [0, 1]; `columns` are where the view has them.
template <typename Pixel>
LDP_DEVICE void load_strip(const Pixel* row, long long column_stride, int x, int w, const int (&columns)[kStrip],
                           float (&v)[3][kStrip]) {
    // The words of an unaligned strip overlap its neighbours, which the first and the last of a row lack.
    const Pixel* p = row + 3 * static_cast<long long>(x);
    if (column_stride == 3 && x + kStrip <= w && (aligned(p, 4) || (x > 0 && x + kStrip < w))) {
        constexpr int per_word = 4 / sizeof(Pixel), bits = 8 * sizeof(Pixel);
        unsigned int words[3 * kStrip * sizeof(Pixel) / 4];
        load_words(p, words);
#pragma unroll
        for (int e = 0; e < 3 * kStrip; ++e) {
            v[e % 3][e / 3] = to_unit<Pixel>(words[e / per_word] >> (e % per_word * bits) & ((1u << bits) - 1));
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
#pragma unroll
        for (int c = 0; c < 3; ++c) v[c][i] = to_unit<Pixel>(__ldg(row + columns[i] * column_stride + c));
    }
}

// 4 px of one channel in the type of an output.
template <typename Element>
struct Four;

template <>
struct Four<half_t> {
    unsigned int low, high;

    LDP_DEVICE void set(float a, float b, float c, float d) { low = to_half_bits2(a, b), high = to_half_bits2(c, d); }
    LDP_DEVICE void store(half_t* p) const { store_vector(p, low, high); }
    LDP_DEVICE void store_one(half_t* p, int i) const {
        p->bits = static_cast<unsigned short>((i < 2 ? low : high) >> (i % 2 * 16));
    }
};

template <>
struct Four<float> {
    float v[kStrip];

    LDP_DEVICE void set(float a, float b, float c, float d) { v[0] = a, v[1] = b, v[2] = c, v[3] = d; }
    LDP_DEVICE void store(float* p) const { store_vector(p, v[0], v[1], v[2], v[3]); }
    LDP_DEVICE void store_one(float* p, int i) const { *p = v[i]; }
};

// Stores the px of a strip that lie in a row of `columns` px of which x is the strip's first; `vector`: the row and
// the plane allow a store of all four where they lie inside.
template <typename Element>
LDP_DEVICE void store_strip(const Four<Element>& v, Element* row, int x, int columns, bool vector) {
    if (vector && x >= 0 && x + kStrip <= columns) {
        v.store(row + x);
        return;
    }
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
        if (x + i >= 0 && x + i < columns) v.store_one(row + x + i, i);
    }
}

// The number of windows that CLIP sees, where they go (null: nowhere), and how the values are normalised.
template <typename Canvas>
struct Canvases {
    Canvas *stereo, *center;
    int patch, first, count;
    Axis rows, columns;
    float mean[3], deviation[3], inverse[3];
};

// Writes a strip, normalised, to every window over it.
template <typename Canvas>
LDP_DEVICE void scatter(const Canvases<Canvas>& to, int y, int x, const float (&l)[3][kStrip],
                        const float (&r)[3][kStrip]) {
    int y0, y1, x0, x1, unused;
    to.rows.covering(y / to.patch, y0, y1);
    to.columns.covering(x / to.patch, x0, unused);
    to.columns.covering((x + kStrip - 1) / to.patch, unused, x1);  // of a patch no multiple of 4, two tokens
    const int side = to.rows.window * to.patch;
    const bool plane_vector = (side & 3) == 0 && aligned(to.stereo, 16) && aligned(to.center, 16);

    Four<Canvas> left[3], flipped[3], middle[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        float a[kStrip], b[kStrip], m[kStrip];
#pragma unroll
        for (int i = 0; i < kStrip; ++i) {
            a[i] = divide(l[c][i] - to.mean[c], to.deviation[c], to.inverse[c]);
            b[i] = divide(r[c][i] - to.mean[c], to.deviation[c], to.inverse[c]);
            m[i] = (a[i] + b[i]) * 0.5f;
        }
        left[c].set(a[0], a[1], a[2], a[3]);
        flipped[c].set(b[3], b[2], b[1], b[0]);
        middle[c].set(m[0], m[1], m[2], m[3]);
    }
    for (int i = y0; i <= y1; ++i) {
        const int local_y = y - to.rows.origin(i) * to.patch;
        for (int j = x0; j <= x1; ++j) {
            const int k = i * to.columns.count + j - to.first;
            if (k < 0 || k >= to.count) continue;
            const int local_x = x - to.columns.origin(j) * to.patch;
            const bool vector = plane_vector && (local_x & 3) == 0;
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const size_t row = (static_cast<size_t>(k) * 3 + c) * side + local_y;
                if (to.stereo) {
                    Canvas* canvas = to.stereo + row * 2 * side;
                    store_strip(left[c], canvas, local_x, side, vector);
                    store_strip(flipped[c], canvas + side, side - kStrip - local_x, side, vector);
                }
                if (to.center) store_strip(middle[c], to.center + row * side, local_x, side, vector);
            }
        }
    }
}

template <typename Pixel, typename Canvas>
LDP_DEVICE void prepare(const Pixel* left, long long left_row, long long left_column, const Pixel* right,
                        long long right_row, long long right_column, int h, int w, int H, int W, int domain_y,
                        int domain_x, int domain_rows, int domain_strips, float* pair, int pair_y, int pair_x,
                        int pair_rows, int pair_columns, const Canvases<Canvas>& canvases) {
    const int strip = blockIdx.x * blockDim.x + threadIdx.x;
    if (strip >= domain_strips) return;
    const int x = domain_x + kStrip * strip;
    int columns[kStrip];
#pragma unroll
    for (int i = 0; i < kStrip; ++i) columns[i] = reflect(reflect(x + i, W), w);
    const int region_x = x - pair_x;
    const bool pair_columns_here = region_x > -kStrip && region_x < pair_columns;
    const bool vector = aligned(pair, 16) && ((pair_x | pair_columns) & 3) == 0;

    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < domain_rows; row += gridDim.y * blockDim.y) {
        const int y = domain_y + row, region_y = y - pair_y;
        const bool in_pair = pair_columns_here && region_y >= 0 && region_y < pair_rows;
        if (!in_pair && canvases.count == 0) continue;

        float l[3][kStrip], r[3][kStrip];
        const int source_y = reflect(reflect(y, H), h);
        load_strip(left + source_y * left_row, left_column, x, w, columns, l);
        load_strip(right + source_y * right_row, right_column, x, w, columns, r);
        if (in_pair) {
            const size_t plane = static_cast<size_t>(pair_rows) * pair_columns;
            float* to = pair + static_cast<size_t>(region_y) * pair_columns;
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                Four<float> a, b;
                a.set(l[c][0], l[c][1], l[c][2], l[c][3]);
                b.set(r[c][0], r[c][1], r[c][2], r[c][3]);
                store_strip(a, to + c * plane, region_x, pair_columns, vector);
                store_strip(b, to + (c + 3) * plane, region_x, pair_columns, vector);
            }
        }
        if (canvases.count != 0) scatter(canvases, y, x, l, r);
    }
}

#define LDP_PREPARE(name, Pixel, Canvas)                                                                              \
    extern "C" __global__ void __launch_bounds__(kPixelThreads, 3) name(                                              \
        const Pixel* __restrict__ left, long long left_row, long long left_column, const Pixel* __restrict__ right,   \
        long long right_row, long long right_column, int h, int w, int H, int W, int domain_y, int domain_x,          \
        int domain_rows, int domain_strips, float* __restrict__ pair, int pair_y, int pair_x, int pair_rows,          \
        int pair_columns, Canvas* __restrict__ stereo, Canvas* __restrict__ center, int patch, int first, int count,  \
        int window, int row_count, int row_span, int column_count, int column_span, float mean0, float mean1,         \
        float mean2, float deviation0, float deviation1, float deviation2, float inverse0, float inverse1,            \
        float inverse2) {                                                                                             \
        prepare<Pixel, Canvas>(left, left_row, left_column, right, right_row, right_column, h, w, H, W, domain_y,     \
                               domain_x, domain_rows, domain_strips, pair, pair_y, pair_x, pair_rows, pair_columns,   \
                               {stereo, center, patch, first, count, {window, row_count, row_span},                   \
                                {window, column_count, column_span}, {mean0, mean1, mean2},                           \
                                {deviation0, deviation1, deviation2}, {inverse0, inverse1, inverse2}});               \
    }

LDP_PREPARE(prepare_u8_f16, unsigned char, half_t)
LDP_PREPARE(prepare_u8_f32, unsigned char, float)
LDP_PREPARE(prepare_u16_f16, unsigned short, half_t)
LDP_PREPARE(prepare_u16_f32, unsigned short, float)
