// blur_map: sigmoid of the logits, upsampled bilinearly (half-pixel centres, edges repeated).
//
// A thread takes 4 columns and walks down 8 rows: it evaluates the sigmoids of a row of tokens once and reuses
// them until the walk comes to the next row of tokens (at most twice, as patches are 8 px or more), so that the
// exponentials are few and the kernel is a stream of 128-bit stores. Strips begin where the output's rows are
// aligned to 16 B, whatever the width.
//
// Bytes: 4 per px written; the tokens are read from L1 and L2.
#include "common.cuh"

constexpr int kWalk = 8;

LDP_DEVICE float sigmoid(float z) {
    const float small = expf(-fabsf(z));
    return (z >= 0.0f ? 1.0f : small) / (1.0f + small);
}

// The token at or before px i, the next, and how far between, of an axis of n tokens.
LDP_DEVICE void taps(int i, int patch, int n, int& before, int& after, float& part) {
    const int twice = 2 * i + 1 - patch;  // 2 patch times the position in tokens
    if (twice <= 0) {
        before = 0, part = 0.0f;
    } else {
        before = twice / (2 * patch);
        part = static_cast<float>(twice - before * 2 * patch) / static_cast<float>(2 * patch);
        if (before >= n - 1) before = n - 1, part = 0.0f;
    }
    after = lower(before + 1, n - 1);
}

extern "C" __global__ void __launch_bounds__(kPixelThreads, 3)
    blur_map(const float* __restrict__ logits, long long row_stride, long long column_stride, int token_rows,
             int token_columns, int patch, float* __restrict__ out, int rows, int columns) {
    const int start = kStrip * (blockIdx.x * blockDim.x + threadIdx.x);
    for (int walk = blockIdx.y * blockDim.y + threadIdx.y; walk * static_cast<long long>(kWalk) < rows;
         walk += gridDim.y * blockDim.y) {
        // Where rows differ in alignment, a walk's strips are aligned to its first row and stores fall back.
        const int top = walk * kWalk, bottom = lower(top + kWalk, rows);
        const int shift = (4 - (reinterpret_cast<size_t>(out + static_cast<size_t>(top) * columns) / 4 & 3)) & 3;
        const int x = start + shift - (shift ? kStrip : 0);
        if (x >= columns) continue;

        int left[kStrip], right[kStrip];
        float part_x[kStrip];
#pragma unroll
        for (int i = 0; i < kStrip; ++i) {
            const int at = x + i < 0 ? 0 : x + i;
            taps(at, patch, token_columns, left[i], right[i], part_x[i]);
        }
        float upper[kStrip] = {}, lower_row[kStrip] = {};
        int cached = -1;
        for (int y = top; y < bottom; ++y) {
            int before, after;
            float part_y;
            taps(y, patch, token_rows, before, after, part_y);
            if (before != cached) {
                cached = before;
#pragma unroll 1
                for (int t = 0; t < 2; ++t) {
                    const float* tokens = logits + (t == 0 ? before : after) * row_stride;
#pragma unroll
                    for (int i = 0; i < kStrip; ++i) {
                        const float a = sigmoid(__ldg(tokens + left[i] * column_stride));
                        const float b = sigmoid(__ldg(tokens + right[i] * column_stride));
                        upper[i] = lower_row[i];
                        lower_row[i] = a + part_x[i] * (b - a);
                    }
                }
            }
            float v[kStrip];
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
                v[i] = part_y * (lower_row[i] - upper[i]) + upper[i];
                v[i] = v[i] < 0.0f ? 0.0f : v[i] > 1.0f ? 1.0f : v[i];  // NaN stays
            }
            float* p = out + static_cast<size_t>(y) * columns + x;
            if (x >= 0 && x + kStrip <= columns && aligned(p, 16)) {
                store_vector(p, v[0], v[1], v[2], v[3]);
            } else {
#pragma unroll
                for (int i = 0; i < kStrip; ++i) {
                    if (x + i >= 0 && x + i < columns) p[i] = v[i];
                }
            }
        }
    }
}
