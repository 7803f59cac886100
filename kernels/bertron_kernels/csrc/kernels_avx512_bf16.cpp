#define BERTRON_TABLE kernels_avx512_bf16
#define BERTRON_NAME "avx512_bf16"
#include "kernels.inc"
