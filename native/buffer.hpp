// A large piece of memory, in large pages where the system has them: with small ones a measurement
// of bandwidth would also measure how fast addresses are translated.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace firstlight {

class Buffer {
public:
    // Every byte is written: untouched pages would all be one and the same page of zeros.
    explicit Buffer(size_t bytes)
        : data_(static_cast<uint8_t*>(::operator new(bytes, kAlignment))) {
#if defined(__linux__)
        // Refused where large pages are turned off, and then done without.
        large_pages_ = madvise(data_, bytes, MADV_HUGEPAGE) == 0;
#endif
        std::memset(data_, 1, bytes);
    }
    ~Buffer() { ::operator delete(data_, kAlignment); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    const uint8_t* data() const { return data_; }
    // Whether the system was asked for large pages and did not refuse.
    bool large_pages() const { return large_pages_; }

private:
    static constexpr std::align_val_t kAlignment{size_t{2} << 20};
    uint8_t* data_;
    bool large_pages_ = false;
};

}  // namespace firstlight
