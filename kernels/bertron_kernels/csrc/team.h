// The threads that share an op.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace bertron {

// Runs body(begin, end, context) over [0, count), `chunk` at a time, on the calling thread and up to
// `threads` - 1 helpers. Whoever is free takes the next chunk: a helper that the scheduler keeps
// waiting is not waited for, only a chunk that it has begun. One op at a time has the helpers; who
// calls meanwhile computes alone. What a body throws is thrown here, after the last chunk.
void share(int64_t threads, int64_t count, int64_t chunk, Body body, void* context);

}  // namespace bertron
