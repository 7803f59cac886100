#define BERTRON_TABLE kernels_avx2
#define BERTRON_NAME "avx2"
#include "kernels.inc"
