#include "case_file.hpp"

#include <cstring>
#include <fstream>
#include <iterator>
#include <new>
#include <stdexcept>

namespace firstlight::tests {
namespace {

constexpr char kMagic[] = "firstlight cases 2\n";
constexpr uint64_t kMostAxes = 8;
constexpr std::align_val_t kAlignment{64};

class Reader {
public:
    explicit Reader(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        if (!file) throw std::runtime_error(path + ": cannot be opened");
        content_.assign(std::istreambuf_iterator<char>(file), {});
        const size_t length = sizeof kMagic - 1;
        if (content_.compare(0, length, kMagic) != 0) {
            throw std::runtime_error(path + ": is no file of conformance cases of this version");
        }
        at_ = length;
    }

    bool ended() const { return at_ == content_.size(); }

    void read(void* to, uint64_t bytes) {
        if (bytes > content_.size() - at_) throw std::runtime_error("the case file ends too soon");
        if (bytes) std::memcpy(to, content_.data() + at_, static_cast<size_t>(bytes));
        at_ += static_cast<size_t>(bytes);
    }

    template <class T>
    T number() {
        T value;
        read(&value, sizeof value);
        return value;
    }

    std::string text() {
        const auto length = number<uint32_t>();
        if (length > content_.size() - at_) throw std::runtime_error("a text is too long");
        std::string value(length, '\0');
        read(value.data(), length);
        return value;
    }

    // An array, its type having been read already.
    Array array(char kind) {
        const auto type = static_cast<ElementType>(kind);
        const auto axes = number<uint32_t>();
        if (axes > kMostAxes) throw std::runtime_error("an array has too many axes");
        std::vector<int64_t> shape;
        uint64_t bytes = bytes_of(type);
        for (uint32_t i = 0; i < axes; ++i) {
            shape.push_back(number<int64_t>());
            if (shape.back() < 0 || shape.back() > int64_t{1} << 32 || bytes > uint64_t{1} << 31) {
                throw std::runtime_error("an array is too large");
            }
            bytes *= static_cast<uint64_t>(shape.back());
        }
        if (bytes > content_.size() - at_) throw std::runtime_error("the case file ends too soon");
        Array array(type, std::move(shape));
        read(array.memory.data(), bytes);
        return array;
    }

private:
    std::string content_;
    size_t at_ = 0;
};

Case read_case(Reader& reader) {
    Case one;
    one.op = reader.text();
    one.name = reader.text();
    one.absolute = reader.number<double>();
    for (auto left = reader.number<uint32_t>(); left > 0; --left) {
        const std::string name = reader.text();
        const char kind = reader.number<char>();
        if (kind == 'n') {
            one.numbers[name] = reader.number<double>();
        } else if (kind == 't') {
            one.texts[name] = reader.text();
        } else {
            one.arrays.emplace(name, reader.array(kind));
        }
    }
    for (auto left = reader.number<uint32_t>(); left > 0; --left) {
        std::string rounding = reader.text();
        const double relative = reader.number<double>();
        const char kind = reader.number<char>();
        one.expected.push_back({std::move(rounding), relative, reader.array(kind)});
    }
    return one;
}

template <class Value>
const Value& find(const std::map<std::string, Value>& values, const std::string& name) {
    const auto found = values.find(name);
    if (found == values.end()) throw std::runtime_error("the case has no argument " + name);
    return found->second;
}

}  // namespace

Memory::Memory(size_t size, size_t offset)
    : size_(size), offset_(offset),
      block_(static_cast<uint8_t*>(::operator new(size + offset, kAlignment))) {
    std::memset(block_.get(), 0xFF, size + offset);
}

void Memory::Free::operator()(uint8_t* block) const { ::operator delete(block, kAlignment); }

Memory::Memory(const Memory& other) : Memory(other.size_, other.offset_) {
    std::memcpy(data(), other.data(), size_);
}

size_t bytes_of(ElementType type) {
    switch (type) {
        case ElementType::float32: return sizeof(float);
        case ElementType::int32: return sizeof(int32_t);
        case ElementType::bfloat16: return sizeof(uint16_t);
        case ElementType::byte: return 1;
    }
    throw std::runtime_error("unknown type of elements");
}

namespace {

size_t bytes_of(ElementType type, const std::vector<int64_t>& shape) {
    size_t bytes = tests::bytes_of(type);
    for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
    return bytes;
}

}  // namespace

Array::Array(ElementType type_, std::vector<int64_t> shape_)
    : Array(type_, std::move(shape_), tests::bytes_of(type_)) {}

Array::Array(ElementType type_, std::vector<int64_t> shape_, size_t offset)
    : type(type_), shape(std::move(shape_)), memory(bytes_of(type, shape), offset) {}

int64_t Array::size() const {
    return static_cast<int64_t>(memory.size() / tests::bytes_of(type));
}

void Array::require_element_size(size_t bytes) const {
    if (bytes != tests::bytes_of(type)) throw std::runtime_error("an array has another dtype");
}

const Array& Case::array(const std::string& name) const { return find(arrays, name); }

double Case::number(const std::string& name) const { return find(numbers, name); }

const std::string& Case::text(const std::string& name) const { return find(texts, name); }

const Array* Case::array_or_null(const std::string& name) const {
    const auto found = arrays.find(name);
    return found == arrays.end() ? nullptr : &found->second;
}

double Case::number_or(const std::string& name, double otherwise) const {
    const auto found = numbers.find(name);
    return found == numbers.end() ? otherwise : found->second;
}

std::vector<Case> read_cases(const std::string& path) {
    Reader reader(path);
    std::vector<Case> cases;
    while (!reader.ended()) cases.push_back(read_case(reader));
    return cases;
}

}  // namespace firstlight::tests
