// What every CPU op runs on: the rank's threads and the kernels of its vector target.
#pragma once

#include "engine/ops/cpu/kernels.h"
#include "engine/thread_pool.h"

namespace headrace {

struct Cpu {
  ThreadPool& threads;
  const Kernels& kernels;
};

}  // namespace headrace
