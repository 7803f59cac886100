// Makes ops.cpp believe that the CPU offers every instruction set, and Linux AMX's registers, unless
// EMULATE_REFUSAL is set.
#pragma once

#include <unistd.h>

#include <atomic>  // which asks Linux itself
#include <cstdlib>

// The permission for AMX, all that ops.cpp asks for.
static inline long emulated_syscall(long, ...) { return std::getenv("EMULATE_REFUSAL") ? -1 : 0; }

#define __builtin_cpu_supports(name) 1
#define syscall emulated_syscall
