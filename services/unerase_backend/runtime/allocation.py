"""How a process that computes keeps the memory that it has freed.

glibc gives freed memory at the end of a heap back to the system, and takes large blocks from the system anew. A step of
a model takes and frees the same megabytes over and over; each page of 4 KiB then costs a page fault, and the kernel
zeroes it. Told so, glibc takes blocks of up to `MMAP_THRESHOLD` from its heaps, and keeps up to `TRIM_THRESHOLD` beyond
the last block in use. A thread's arena is a chain of heaps of 64 MiB; `TOP_PAD` keeps it from giving back a whole one.
"""

import ctypes
import platform

# The numbers of the parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

TRIM_THRESHOLD = 256 * 2**20
# The greatest to which glibc raises it by itself.
MMAP_THRESHOLD = 32 * 2**20
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Have this process keep freed memory for its next step; return whether the C library is one that can be told.

    Results do not depend on it. What a process holds when it is idle grows by at most `TRIM_THRESHOLD` in each of the
    allocator's arenas.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    asked = {_M_MMAP_THRESHOLD: MMAP_THRESHOLD, _M_TRIM_THRESHOLD: TRIM_THRESHOLD, _M_TOP_PAD: TOP_PAD}
    return 0 not in [mallopt(parameter, value) for parameter, value in asked.items()]
