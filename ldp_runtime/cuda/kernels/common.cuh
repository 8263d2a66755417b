// What the kernels share. Device code alone, no headers: NVRTC compiles it in a fraction of a second, and the
// tests compile the same text with g++ behind tests/ldp_runtime/cuda/shim.
//
// Two rules keep the results equal to the numpy twins bit for bit: the compiler contracts nothing (--fmad=false;
// an fmaf that is wanted is written), and divisions are IEEE's or corrected to be (`divide`).
#pragma once

#define LDP_DEVICE __device__ __forceinline__

constexpr int kStrip = 4;           // px that a thread of the pixel kernels handles: 16 B of FP32
constexpr int kPixelThreads = 256;  // of a block, launches.py has the same

struct half_t {
    unsigned short bits;
};

#ifdef __CUDACC__
LDP_DEVICE unsigned short to_half_bits(float v) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}

LDP_DEVICE unsigned int to_half_bits2(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned int bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return to_half_bits(low) | static_cast<unsigned int>(to_half_bits(high)) << 16;
#endif
}

LDP_DEVICE float from_half_bits(unsigned int bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(static_cast<unsigned short>(bits)));
    return v;
}

// Stores of 64 and 128 bits, written as such: the compiler breaks up a float4 that it has in four registers where
// other stores to the same address stand beside it, which costs two to four times the instructions.
LDP_DEVICE void store_vector(float* p, float a, float b, float c, float d) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "l"(__cvta_generic_to_global(p)), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

LDP_DEVICE void store_vector(void* p, unsigned int a, unsigned int b) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(__cvta_generic_to_global(p)), "r"(a), "r"(b) : "memory");
}
#endif

LDP_DEVICE bool aligned(const void* p, unsigned int bytes) {
    return (reinterpret_cast<size_t>(p) & (bytes - 1)) == 0;
}

LDP_DEVICE int lower(int a, int b) { return a < b ? a : b; }

// NaN and Inf have all bits of the exponent set.
LDP_DEVICE bool not_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) == 0x7f800000u; }

// n / d from r = 1 / d rounded to nearest: a product and one correction by the exact remainder (Markstein).
// Full-rate instructions only, where the compiler's own division branches to a slow path.
LDP_DEVICE float divide(float n, float d, float r) {
    const float q = n * r;
    return fmaf(fmaf(-q, d, n), r, q);
}

// Position i of an axis of n samples continued by reflection without edge repeat, iterated (reflect-101).
LDP_DEVICE int reflect(int i, int n) {
    if (i < n) return i;
    if (n == 1) return 0;
    const int period = 2 * (n - 1);
    i %= period;
    return lower(i, period - i);
}

// The windows of CLIP along one axis, in tokens: `count` of them, `window` wide, the last one's origin at `span`;
// WindowAxis.spread's rule, in integers.
struct Axis {
    int window, count, span;

    LDP_DEVICE int origin(int i) const { return count > 1 ? i * span / (count - 1) : 0; }

    // The windows first .. last that cover a token.
    LDP_DEVICE void covering(int token, int& first, int& last) const {
        first = last = 0;
        if (span == 0) return;
        const int steps = count - 1, before = token - window + 1;
        last = lower(steps, ((token + 1) * steps - 1) / span);
        if (before > 0) first = (before * steps + span - 1) / span;
    }

    // A window's share of a token before the shares are normalised: a triangle over the window.
    LDP_DEVICE int triangle(int i, int token) const {
        const int at = token - origin(i);
        return lower(at + 1, window - at);
    }
};
