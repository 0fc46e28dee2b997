#include "engine/ops/cpu/amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace headrace::cpu_detail {
namespace {

constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7, EDX
constexpr long kRequestPermission = 0x1023;             // ARCH_REQ_XCOMP_PERM
constexpr long kTileData = 18;

bool ask() {
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & (kTile | kInt8)) != (kTile | kInt8)) {
    return false;
  }
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool may_use_amx() {
  static const bool may = ask();
  return may;
}

}  // namespace headrace::cpu_detail
