// blend: adds a weighted tile to an accumulator of restored rows.
//
// A thread takes 4 px of a row in all three channels: 128-bit loads and stores where the tile's and the accumulator's
// rows are aligned alike. A weight of exactly one belongs to px that no other tile reaches (weights sum to one):
// those are stored, not added, which spares reading the accumulator over most of it.
//
// Bytes: 12 per px of tile read, 12 written, 12 read back where tiles overlap.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(kPixelThreads, 3)
    blend(const float* __restrict__ tile, int tile_rows, int tile_columns, const float* __restrict__ weight_y,
          const float* __restrict__ weight_x, float* __restrict__ total, int total_rows, int total_columns, int at_y,
          int at_x, int top, int bottom, int strips, int first_x) {
    const int strip = blockIdx.x * blockDim.x + threadIdx.x;
    if (strip >= strips) return;
    const int x = first_x + kStrip * strip;  // in the accumulator, a multiple of 4, as first_x
    const int j = x - at_x;                  // in the tile
    const size_t tile_plane = static_cast<size_t>(tile_rows) * tile_columns;
    const size_t total_plane = static_cast<size_t>(total_rows) * total_columns;
    const bool vector = aligned(tile, 16) && aligned(total, 16) && aligned(weight_x, 16) &&
                        ((at_x | tile_columns | total_columns) & 3) == 0 && x >= 0 && j >= 0 &&
                        x + kStrip <= total_columns && j + kStrip <= tile_columns;

    for (int y = top + blockIdx.y * blockDim.y + threadIdx.y; y < bottom; y += gridDim.y * blockDim.y) {
        const int i = y - at_y;
        const float wy = __ldg(weight_y + i);
        const float* from = tile + static_cast<size_t>(i) * tile_columns + j;
        float* to = total + static_cast<size_t>(y) * total_columns + x;
        if (vector) {
            const float4 wx = __ldg(reinterpret_cast<const float4*>(weight_x + j));
            const float4 w = make_float4(wy * wx.x, wy * wx.y, wy * wx.z, wy * wx.w);
            const bool alone = w.x == 1.0f && w.y == 1.0f && w.z == 1.0f && w.w == 1.0f;
            float4 v[3];
#pragma unroll
            for (int c = 0; c < 3; ++c) v[c] = __ldg(reinterpret_cast<const float4*>(from + c * tile_plane));
            if (!alone) {
                float4 sum[3];
#pragma unroll
                for (int c = 0; c < 3; ++c) sum[c] = *reinterpret_cast<const float4*>(to + c * total_plane);
#pragma unroll
                for (int c = 0; c < 3; ++c) {
                    v[c].x = w.x == 1.0f ? v[c].x : sum[c].x + w.x * v[c].x;
                    v[c].y = w.y == 1.0f ? v[c].y : sum[c].y + w.y * v[c].y;
                    v[c].z = w.z == 1.0f ? v[c].z : sum[c].z + w.z * v[c].z;
                    v[c].w = w.w == 1.0f ? v[c].w : sum[c].w + w.w * v[c].w;
                }
            }
#pragma unroll
            for (int c = 0; c < 3; ++c) store_vector(to + c * total_plane, v[c].x, v[c].y, v[c].z, v[c].w);
            continue;
        }
        for (int k = 0; k < kStrip; ++k) {
            if (x + k < 0 || x + k >= total_columns || j + k < 0 || j + k >= tile_columns) continue;
            const float w = wy * __ldg(weight_x + j + k);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const float v = __ldg(from + c * tile_plane + k);
                float* sum = to + c * total_plane + k;
                *sum = w == 1.0f ? v : *sum + w * v;
            }
        }
    }
}
