// The kernels, built for the host.
#include "cuda_host.hpp"

#include "kernels.cu"

CUDA_HOST_ENTRY(blend, false)
CUDA_HOST_ENTRY(blur_logits_f16, true)
CUDA_HOST_ENTRY(blur_logits_f32, true)
CUDA_HOST_ENTRY(blur_map, false)
CUDA_HOST_ENTRY(finish_u8, false)
CUDA_HOST_ENTRY(finish_u16, false)
CUDA_HOST_ENTRY(finish_u8_turned, false)
CUDA_HOST_ENTRY(finish_u16_turned, false)
CUDA_HOST_ENTRY(prepare_u8_f16, false)
CUDA_HOST_ENTRY(prepare_u8_f32, false)
CUDA_HOST_ENTRY(prepare_u16_f16, false)
CUDA_HOST_ENTRY(prepare_u16_f32, false)
