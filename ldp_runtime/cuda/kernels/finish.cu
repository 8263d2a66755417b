// finish: crops, clamps, rounds half to even and interleaves the restored planes; counts NaN and Inf.
//
// A thread takes 4 px along the axis in which the image's pixels are neighbours, x, or y for a vertical pair
// (`turned`), where they fill whole words: 12 B as three 32-bit stores, 24 B as three 64-bit ones. Rows of the
// image begin at any byte (3 w is odd for odd w), so each row's strips begin at the px where a word does.
// Loads are 128 bits a channel (upright, aligned strips) or 32 bits from neighbours side by side.
//
// Bytes: 12 per px of the padded frame read (all of it: NaN in the padding counts), 3 or 6 per px written.
#include "common.cuh"

// v * top rounded half to even and clamped, in the low bits: at 2^23 FP32's steps are one, and it rounds so.
template <typename Pixel>
LDP_DEVICE unsigned int quantise(float v) {
    constexpr float top = sizeof(Pixel) == 1 ? 255.0f : 65535.0f;
    v = fminf(fmaxf(v * top, 0.0f), top);
    return __float_as_uint(v + 8388608.0f);
}

// 12 values, of which only the low bits count, as words.
LDP_DEVICE void store_words(unsigned char* p, const unsigned int (&q)[3 * kStrip]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const unsigned int low = __byte_perm(q[4 * i], q[4 * i + 1], 0x0040);
        const unsigned int high = __byte_perm(q[4 * i + 2], q[4 * i + 3], 0x0040);
        reinterpret_cast<unsigned int*>(p)[i] = __byte_perm(low, high, 0x5410);
    }
}

LDP_DEVICE void store_words(unsigned short* p, const unsigned int (&q)[3 * kStrip]) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        store_vector(p + 4 * i, __byte_perm(q[4 * i], q[4 * i + 1], 0x5410),
                     __byte_perm(q[4 * i + 2], q[4 * i + 3], 0x5410));
    }
}

template <typename Pixel, bool kTurned>
LDP_DEVICE void finish(const float* restored, long long plane, int H, int W, Pixel* image, long long row_stride,
                       long long column_stride, int h, int w, int* invalid) {
    // along: the axis of a strip; across: the other. Threads neighbour along x in both.
    const int strip_index = kTurned ? blockIdx.y * blockDim.y + threadIdx.y : blockIdx.x * blockDim.x + threadIdx.x;
    const int across_index = kTurned ? blockIdx.x * blockDim.x + threadIdx.x : blockIdx.y * blockDim.y + threadIdx.y;
    const int strip_step = kTurned ? gridDim.y * blockDim.y : gridDim.x * blockDim.x;
    const int across_step = kTurned ? gridDim.x * blockDim.x : gridDim.y * blockDim.y;
    const int length = kTurned ? H : W, kept = kTurned ? h : w;
    const int across_length = kTurned ? W : H, across_kept = kTurned ? w : h;
    const long long out_along = kTurned ? row_stride : column_stride;
    const long long out_across = kTurned ? column_stride : row_stride;
    const bool rows_aligned = !kTurned && aligned(restored, 16) && ((W | plane) & 3) == 0;

    int count = 0;
    for (int across = across_index; across < across_length; across += across_step) {
        Pixel* line = image + across * out_across;
        // 3 px + shift elements end a word where px = shift (modulo 4).
        const int shift = out_along == 3 ? reinterpret_cast<size_t>(line) / sizeof(Pixel) & 3 : 0;
        for (int strip = strip_index;; strip += strip_step) {
            const int at = kStrip * strip + shift - (shift ? kStrip : 0);
            if (at >= length) break;
            float v[3][kStrip];
            if (!kTurned && rows_aligned && shift == 0) {
                const float* from = restored + static_cast<size_t>(across) * W + at;
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    const float4 four = __ldg(reinterpret_cast<const float4*>(from + c * plane));
                    v[c][0] = four.x, v[c][1] = four.y, v[c][2] = four.z, v[c][3] = four.w;
                }
            } else {
                const size_t step = kTurned ? W : 1;
                const float* from = restored + (kTurned ? across : static_cast<size_t>(across) * W);
#pragma unroll
                for (int i = 0; i < kStrip; ++i) {
                    const bool inside = at + i >= 0 && at + i < length;
#pragma unroll
                    for (int c = 0; c < 3; ++c) v[c][i] = inside ? __ldg(from + c * plane + (at + i) * step) : 0.0f;
                }
            }
            unsigned int q[3 * kStrip];
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    count += not_finite(v[c][i]);
                    q[3 * i + c] = quantise<Pixel>(v[c][i]);
                }
            }
            if (across >= across_kept) continue;
            Pixel* to = line + at * out_along;
            if (out_along == 3 && at >= 0 && at + kStrip <= kept) {
                store_words(to, q);
            } else {
#pragma unroll
                for (int i = 0; i < kStrip; ++i) {
                    if (at + i < 0 || at + i >= kept) continue;
#pragma unroll
                    for (int c = 0; c < 3; ++c) to[i * out_along + c] = static_cast<Pixel>(q[3 * i + c]);
                }
            }
        }
    }
    if (count) atomicAdd(invalid, count);
}

#define LDP_FINISH(name, Pixel, turned)                                                                               \
    extern "C" __global__ void __launch_bounds__(kPixelThreads, 3) name(                                              \
        const float* __restrict__ restored, long long plane, int H, int W, Pixel* __restrict__ image,                 \
        long long row_stride, long long column_stride, int h, int w, int* invalid) {                                  \
        finish<Pixel, turned>(restored, plane, H, W, image, row_stride, column_stride, h, w, invalid);                \
    }

LDP_FINISH(finish_u8, unsigned char, false)
LDP_FINISH(finish_u16, unsigned short, false)
LDP_FINISH(finish_u8_turned, unsigned char, true)
LDP_FINISH(finish_u16_turned, unsigned short, true)
