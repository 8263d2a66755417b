// All kernels as one program.
#include "blend.cu"
#include "blur_logits.cu"
#include "blur_map.cu"
#include "finish.cu"
#include "prepare.cu"
