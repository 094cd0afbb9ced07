"""Tells glibc to keep the memory of freed tensors, much of which it would otherwise return to the system.

Every backward pass allocates gradients and every update frees them. If glibc returns that memory,
the kernel has to map and clear the same pages again in the next update.
`benchmarks/freed_memory.py` measures what that costs.
"""

import ctypes
import os
import platform

# From glibc's malloc.h. https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_FREE = (1 << 31) - 1  # bytes at the top of the heap, the most that mallopt takes
LARGEST_FROM_HEAP = 1 << 30  # bytes
OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next allocation, unless the user has tuned it.

    The numbers that a training computes do not depend on it. The process keeps the most memory that it
    has used at one time.

    Returns:
        Whether glibc was told. It is not if the process uses another C library, or if one of the
        variables in `OF_THE_USER` is set.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OF_THE_USER):
        return False
    library = ctypes.CDLL(None)
    trims_late = library.mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
    maps_little = library.mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
    return bool(trims_late and maps_little)
