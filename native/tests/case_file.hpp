// Cases of the conformance check as Python wrote them (firstlight/verify/case_file.py, which
// describes the layout of the file).

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace firstlight::tests {

// Exactly so many bytes and not one more, so that AddressSanitizer sees a read past their end.
class Memory {
public:
    // The bytes start `offset` past a multiple of 64, and hold 0xFF: as floats they are no numbers.
    explicit Memory(size_t size, size_t offset = 0);
    Memory(const Memory& other);
    Memory(Memory&&) = default;
    Memory& operator=(Memory&&) = default;

    uint8_t* data() const { return block_.get() + offset_; }
    size_t size() const { return size_; }

private:
    struct Free {
        void operator()(uint8_t* block) const;
    };

    size_t size_, offset_;
    std::unique_ptr<uint8_t[], Free> block_;
};

enum class ElementType : char { float32 = 'f', int32 = 'i', bfloat16 = 'h', byte = 'b' };

size_t bytes_of(ElementType type);

// A C-contiguous array.
struct Array {
    ElementType type;
    std::vector<int64_t> shape;
    Memory memory;

    // Of that shape, every byte 0xFF, and aligned to its type but to nothing more.
    Array(ElementType type, std::vector<int64_t> shape);
    // `offset` bytes past a multiple of 64.
    Array(ElementType type, std::vector<int64_t> shape, size_t offset);

    int64_t size() const;
    int64_t extent(size_t axis) const { return shape.at(axis); }
    // Throws std::runtime_error where the elements are of another type.
    template <class T>
    T* elements() const {
        require_element_size(sizeof(T));
        return reinterpret_cast<T*>(memory.data());
    }

private:
    void require_element_size(size_t bytes) const;
};

// What the definition gives where activations are rounded so (ops/rounding.py).
struct Expectation {
    std::string rounding;
    double relative;  // tolerance
    Array result;
};

// One set of arguments for one op. Arguments that are None in Python are not there.
struct Case {
    std::string op, name;
    double absolute = 0;  // tolerance
    std::map<std::string, Array> arrays;
    std::map<std::string, double> numbers;
    std::map<std::string, std::string> texts;
    std::vector<Expectation> expected;

    // Throw std::runtime_error where there is no argument of that name.
    const Array& array(const std::string& name) const;
    double number(const std::string& name) const;
    const std::string& text(const std::string& name) const;
    // Null where there is none.
    const Array* array_or_null(const std::string& name) const;
    double number_or(const std::string& name, double otherwise) const;
};

// Throws std::runtime_error where the file cannot be read or is not whole.
std::vector<Case> read_cases(const std::string& path);

}  // namespace firstlight::tests
