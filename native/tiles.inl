// Matrix tiles: registers of 16 rows of 64 bytes, and products of two of them added to a third.
//
// Tiles are Intel's AMX, or with FIRSTLIGHT_EMULATED_TILES the same in software, to the bit, so that
// the kernels can be checked on machines without it. A tile's number is written as a literal: 0 to 3
// are sums, 4 and 5 left and 6 and 7 right factors.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG,
// TILELOADD, TILESTORED, TILEZERO, TDPBF16PS, TDPBSUD.

#if defined(FIRSTLIGHT_EMULATED_TILES) || defined(__AMX_BF16__)
#define FIRSTLIGHT_TILES

constexpr int64_t kTileSide = 16, kTileLine = 64, kTileBytes = kTileSide * kTileLine;

// How many of the columns of left and rows of right tiles count, in units of four bytes. All other
// tiles, and these in the other direction, are full.
struct TileDepth {
    int words;
};

#if defined(FIRSTLIGHT_EMULATED_TILES)

class TileUse {
public:
    explicit TileUse(TileDepth depth = {kTileSide}) : depth_(depth.words) {}

    void zero(int tile) { memset(tiles_[tile], 0, sizeof tiles_[tile]); }

    void load(int tile, const void* from, int64_t stride) {
        const int rows = tile < 6 ? kTileSide : depth_, bytes = tile / 2 == 2 ? 4 * depth_ : 64;
        for (int64_t row = 0; row < rows; ++row) {
            memcpy(tiles_[tile][row], static_cast<const uint8_t*>(from) + row * stride,
                   static_cast<size_t>(bytes));
        }
    }

    void store(int tile, void* to, int64_t stride) const {
        for (int64_t row = 0; row < kTileSide; ++row) {
            memcpy(static_cast<uint8_t*>(to) + row * stride, tiles_[tile][row], kTileLine);
        }
    }

    // Even and odd columns have sums of their own, which start at zero, are added to each other and
    // then to what was there. Subnormal numbers count as zero, before and after every operation.
    void add_bf16(int sums, int left, int right) {
        static_assert(kWidth == kTileSide);
        for (int64_t m = 0; m < kTileSide; ++m) {
            Vector even = broadcast(0.0f), odd = broadcast(0.0f);
            for (int64_t k = 0; k < kTileSide; ++k) {
                const Integers pair = broadcast_int(static_cast<int32_t>(
                    load_word(tiles_[left][m] + 4 * k)));
                const Integers row = as_int(::firstlight::load(tiles_[right][k]));
                even = flush(multiply_add(low(pair), low(row), even));
                odd = flush(multiply_add(high(pair), high(row), odd));
            }
            const Vector both = flush(even + odd);
            const Vector before = flush(::firstlight::load(tiles_[sums][m]));
            ::firstlight::store(tiles_[sums][m], flush(before + both));
        }
    }

    // Signed bytes of the left tile by unsigned ones of the right one; sums wrap.
    void add_int8(int sums, int left, int right) {
        for (int64_t m = 0; m < kTileSide; ++m) {
            __m512i sum = _mm512_load_si512(tiles_[sums][m]);
            for (int k = 0; k < depth_; ++k) {
                const auto four = static_cast<int32_t>(load_word(tiles_[left][m] + 4 * k));
                const __m512i row = _mm512_load_si512(tiles_[right][k]);
                sum = _mm512_dpbusd_epi32(sum, row, _mm512_set1_epi32(four));
            }
            _mm512_store_si512(tiles_[sums][m], sum);
        }
    }

private:
    static Vector flush(Vector values) {
        const Integers bits = as_int(values);
        const Integers normal =
            ~equal(as_float(bits & broadcast_int(0x7F800000)), broadcast(0.0f));
        return as_float(bits & (normal | broadcast_int(INT32_MIN)));
    }
    static Vector low(Integers pairs) { return flush(as_float(pairs << 16)); }
    static Vector high(Integers pairs) {
        return flush(as_float(pairs & broadcast_int(static_cast<int32_t>(0xFFFF0000))));
    }

    int depth_;
    alignas(64) uint8_t tiles_[8][kTileSide][kTileLine];
};

#define FIRSTLIGHT_TILE_ZERO(use, tile) (use).zero(tile)
#define FIRSTLIGHT_TILE_LOAD(use, tile, from, stride) (use).load(tile, from, stride)
#define FIRSTLIGHT_TILE_STORE(use, tile, to, stride) (use).store(tile, to, stride)
#define FIRSTLIGHT_TILE_ADD_BF16(use, sums, left, right) (use).add_bf16(sums, left, right)
#define FIRSTLIGHT_TILE_ADD_INT8(use, sums, left, right) (use).add_int8(sums, left, right)

#else

// The compiler does not know what the tile instructions read.
#define FIRSTLIGHT_TILE_BARRIER() asm volatile("" ::: "memory")

// Tiles are configured while an object of this class lives.
class TileUse {
public:
    explicit TileUse(TileDepth depth = {kTileSide}) {
        alignas(64) uint8_t layout[64] = {};
        layout[0] = 1;  // the palette
        for (int tile = 0; tile < 8; ++tile) {
            const auto line = static_cast<uint16_t>(tile / 2 == 2 ? 4 * depth.words : kTileLine);
            memcpy(layout + 16 + 2 * tile, &line, sizeof line);
            layout[48 + tile] = static_cast<uint8_t>(tile < 6 ? kTileSide : depth.words);
        }
        FIRSTLIGHT_TILE_BARRIER();
        _tile_loadconfig(layout);
        FIRSTLIGHT_TILE_BARRIER();
    }
    ~TileUse() { _tile_release(); }
    TileUse(const TileUse&) = delete;
    TileUse& operator=(const TileUse&) = delete;
};

#define FIRSTLIGHT_TILE_ZERO(use, tile) _tile_zero(tile)
#define FIRSTLIGHT_TILE_LOAD(use, tile, from, stride) \
    do {                                              \
        FIRSTLIGHT_TILE_BARRIER();                    \
        _tile_loadd(tile, from, stride);              \
    } while (false)
#define FIRSTLIGHT_TILE_STORE(use, tile, to, stride) \
    do {                                             \
        _tile_stored(tile, to, stride);              \
        FIRSTLIGHT_TILE_BARRIER();                   \
    } while (false)
#define FIRSTLIGHT_TILE_ADD_BF16(use, sums, left, right) _tile_dpbf16ps(sums, left, right)
#define FIRSTLIGHT_TILE_ADD_INT8(use, sums, left, right) _tile_dpbsud(sums, left, right)

#endif

#endif
