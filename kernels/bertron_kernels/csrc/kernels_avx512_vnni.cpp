#define BERTRON_TABLE kernels_avx512_vnni
#define BERTRON_NAME "avx512_vnni"
#include "kernels.inc"
