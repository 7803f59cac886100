#define BERTRON_TABLE kernels_amx
#define BERTRON_NAME "amx"
#include "kernels.inc"
