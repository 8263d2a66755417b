// blur_logits: features of all windows to the blur logits of the frame (Eq. 4 to 6, ensemble, blending).
//
// One warp a token, gathering it from each window over it: the order of the sums is fixed, so the result is too,
// and there is neither an atomic nor a buffer of per-window logits. The lanes share the channels, 16 B a load, and
// sum 16 values at once: 7 blur-aware dot products and the squared length, 7 DP-aware ones and theirs. Halving the
// set at each exchange takes 16 shuffles (five each would be 80) and leaves slot l in lanes l and l + 16, so that
// the prompts' logits and their ensemble are computed side by side.
//
// Bytes: 3 c features a token and window, once; 4 a token written. The table (k c floats) stays in L1.
#include "common.cuh"

constexpr int kSlots = 8;  // of a format: 7 prompts and the squared length
constexpr int kTokenThreads = 128;
constexpr unsigned int kAllLanes = 0xffffffffu;

template <int N>
LDP_DEVICE void load_features(const float* p, float (&v)[N]) {
    if (N == 1) {
        v[0] = __ldg(p);
    } else {
#pragma unroll
        for (int i = 0; i < N / 4; ++i) {
            const float4 four = __ldg(reinterpret_cast<const float4*>(p) + i);
            v[4 * i] = four.x, v[4 * i + 1] = four.y, v[4 * i + 2] = four.z, v[4 * i + 3] = four.w;
        }
    }
}

template <int N>
LDP_DEVICE void load_features(const half_t* p, float (&v)[N]) {
    if (N == 1) {
        v[0] = from_half_bits(__ldg(reinterpret_cast<const unsigned short*>(p)));
    } else {
        const uint4 eight = __ldg(reinterpret_cast<const uint4*>(p));
        const unsigned int words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = from_half_bits(words[i / 2] >> (i % 2 * 16));
    }
}

// Adds N channels of a vector to the dot products with `count` rows of the table, and to its squared length.
template <int N>
LDP_DEVICE void accumulate(const float (&v)[N], const float* table, int stride, int count, float* sums) {
#pragma unroll
    for (int k = 0; k < kSlots - 1; ++k) {
        if (k < count) {
            float t[N];
            load_features<N>(table + k * stride, t);
#pragma unroll
            for (int i = 0; i < N; ++i) sums[k] = fmaf(v[i], t[i], sums[k]);
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sums[kSlots - 1] = fmaf(v[i], v[i], sums[kSlots - 1]);
}

template <int N, typename Feature>
LDP_DEVICE void dot_products(const Feature* center, const Feature* near, const Feature* mirrored, const float* table,
                             int stride, int channels, int blur_aware, int dp_aware, int lane, float* sums) {
    for (int e = lane * N; e < channels; e += 32 * N) {
        float a[N], b[N], m[N];
        if (blur_aware) load_features<N>(center + e, m);
        if (dp_aware) {
            load_features<N>(near + e, a);
            load_features<N>(mirrored + e, b);
        }
        if (blur_aware) accumulate<N>(m, table + e, stride, blur_aware, sums);
        if (dp_aware) {
#pragma unroll
            for (int i = 0; i < N; ++i) a[i] = (a[i] + b[i]) * 0.5f;  // alpha, Eq. 5
            accumulate<N>(a, table + blur_aware * stride + e, stride, dp_aware, sums + kSlots);
        }
    }
}

// Sums 16 values over the warp; lane l gets the sum of value l % 16.
LDP_DEVICE float transpose_sum(float (&v)[2 * kSlots], int lane) {
#pragma unroll
    for (int half = kSlots; half >= 1; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float keep = upper ? v[i + half] : v[i], send = upper ? v[i] : v[i + half];
            v[i] = keep + __shfl_xor_sync(kAllLanes, send, half);
        }
    }
    return v[0] + __shfl_xor_sync(kAllLanes, v[0], 16);
}

// Sums over the 16 lanes of a half warp.
LDP_DEVICE float half_warp_sum(float v) {
#pragma unroll
    for (int step = 8; step >= 1; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
    return v;
}

template <typename Feature>
LDP_DEVICE void blur_logits(const Feature* stereo, const Feature* center, const float* table, int stride, int channels,
                            int blur_aware, int dp_aware, const Axis& rows, const Axis& columns, float* logits,
                            int token_rows, int token_columns, int* invalid) {
    const int lane = threadIdx.x & 31;
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (token >= token_rows * token_columns) return;  // the whole warp
    const int ty = token / token_columns, tx = token - ty * token_columns;

    constexpr int wide = 16 / sizeof(Feature);
    const bool vector = channels % wide == 0 && aligned(stereo, 16) && aligned(center, 16) && aligned(table, 16);

    // This lane's prompt: its row of the table, and the sign of Eq. 6 (M = 1 - sigma turns z).
    const bool dp = lane & kSlots;
    const int slot = lane & (kSlots - 1);
    const bool used = slot < (dp ? dp_aware : blur_aware);
    float offset = 0.0f, temperature = 1.0f;
    if (used) {
        const float* numbers = table + static_cast<size_t>(slot + (dp ? blur_aware : 0)) * stride + stride - 4;
        offset = __ldg(numbers);
        temperature = __ldg(numbers + 1);
        if (dp) temperature = -temperature;
    }

    int y0, y1, x0, x1;
    rows.covering(ty, y0, y1);
    columns.covering(tx, x0, x1);
    int total_y = 0, total_x = 0;
    for (int i = y0; i <= y1; ++i) total_y += rows.triangle(i, ty);
    for (int j = x0; j <= x1; ++j) total_x += columns.triangle(j, tx);

    float blended = 0.0f;
    const int g = rows.window;
    for (int i = y0; i <= y1; ++i) {
        const int local_y = ty - rows.origin(i);
        const float weight_y = static_cast<float>(rows.triangle(i, ty)) / static_cast<float>(total_y);
        for (int j = x0; j <= x1; ++j) {
            const int local_x = tx - columns.origin(j);
            const float weight_x = static_cast<float>(columns.triangle(j, tx)) / static_cast<float>(total_x);
            const size_t row = (static_cast<size_t>(i) * columns.count + j) * g + local_y;
            const Feature* at = center + (row * g + local_x) * channels;
            const Feature* near = stereo + (row * 2 * g + local_x) * channels;
            const Feature* mirrored = stereo + (row * 2 * g + 2 * g - 1 - local_x) * channels;

            float sums[2 * kSlots] = {};
            if (vector) {
                dot_products<wide>(at, near, mirrored, table, stride, channels, blur_aware, dp_aware, lane, sums);
            } else {
                dot_products<1>(at, near, mirrored, table, stride, channels, blur_aware, dp_aware, lane, sums);
            }
            const float dot = transpose_sum(sums, lane);
            const float square = __shfl_sync(kAllLanes, dot, lane | (kSlots - 1));
            const float length = sqrtf(square);
            const float tiny = 1.17549435e-38f;  // a zero vector stays zero, its cosine too
            // A square that overflows would make the cosine zero: it shall be NaN, and be found.
            const float cosine = not_finite(square) ? square - square : dot / (length < tiny ? tiny : length);
            const float z = (100.0f * cosine - offset) / temperature;

            const float small = expf(-fabsf(z));  // in (0, 1]: sigmoid(z) and sigmoid(-z) without cancellation
            const float large_side = 1.0f / (1.0f + small), small_side = small / (1.0f + small);
            const float blurred = half_warp_sum(!used ? 0.0f : z >= 0.0f ? large_side : small_side);
            const float sharp = half_warp_sum(!used ? 0.0f : z >= 0.0f ? small_side : large_side);
            float logit = logf(blurred / sharp);
            logit = logit < -10.0f ? -10.0f : logit > 10.0f ? 10.0f : logit;  // NaN stays
            blended += weight_y * weight_x * logit;
        }
    }
    if (lane == 0) {
        logits[token] = blended;
        if (not_finite(blended)) atomicAdd(invalid, 1);
    }
}

#define LDP_BLUR_LOGITS(name, Feature, blocks)                                                                        \
    extern "C" __global__ void __launch_bounds__(kTokenThreads, blocks) name(                                         \
        const Feature* __restrict__ stereo, const Feature* __restrict__ center, const float* __restrict__ table,      \
        int stride, int channels, int blur_aware, int dp_aware, int window, int row_count, int row_span,              \
        int column_count, int column_span, float* __restrict__ logits, int token_rows, int token_columns,             \
        int* invalid) {                                                                                               \
        blur_logits<Feature>(stereo, center, table, stride, channels, blur_aware, dp_aware,                           \
                             {window, row_count, row_span}, {window, column_count, column_span}, logits, token_rows,  \
                             token_columns, invalid);                                                                 \
    }

// Blocks that a multiprocessor holds at least: as many as fit with no register spilled on any architecture.
LDP_BLUR_LOGITS(blur_logits_f16, half_t, 4)
LDP_BLUR_LOGITS(blur_logits_f32, float, 3)
