// How a matrix lies in panels. The same bytes on every machine, so that they can be kept in a file.
//
// A panel is sixteen rows; the last is filled up with zeros. It is a run of units, a unit a header
// and groups of 32 columns, a group its codes and then its scales. Codes are unsigned and lie in
// planes of bits. A vector of a plane is 64 bytes, byte 4 * r + i being of row r and column i of a
// quad of four columns:
//     8 bits: a vector for each quad;
//     4 bits: vector i has quad i in the low and quad i + 4 in the high nibbles;
//     2 bits: vector i has quad 4 * i + k in bits 2 * k and 2 * k + 1;
//     1 bit: one vector has quad k in bit k.
// Codes of 3, 5 and 6 bits have the plane of their lower 2 or 4 bits first.
//
// Formats with blocks of 32 values: no header; after the codes a float16 scale for each row, then
// minima likewise where there are any. K-quants: the header holds float16 scales, then scales of
// minima where there are any; after the codes come a byte of scale and a byte of minimum for each
// row (q4_k, q5_k), or a byte of scale for each row of the first 16 columns, then of the last 16,
// which in q2_k has the minimum in its upper nibble.
//
// Formats whose codes name entries of a table hold the codes. iq4_nl has scales as the first formats
// do, iq4_xs the header of a k-quant and a signed byte of scale for each row. mxfp4 and nvfp4 have
// bytes alone, the latter for each row of the first 16 columns and then of the last 16, as
// table_formats.inl's half_e8m0 and half_e4m3 take them.

constexpr int64_t kPanelRows = 16;
constexpr int64_t kGroupColumns = 32;
constexpr int64_t kPlaneBytes = 64;

struct PanelShape {
    int bits;    // of a code; 0: the format is used in place
    int header;  // bytes of a unit's header
    int groups;  // of a unit
    int scales;  // bytes of a group's scales

    constexpr int64_t group_bytes() const { return kPlaneBytes * bits + scales; }
    constexpr int64_t unit_bytes() const { return header + groups * group_bytes(); }
    constexpr int64_t panel_bytes(int64_t columns) const {
        return columns / (kGroupColumns * groups) * unit_bytes();
    }
};

constexpr PanelShape panel_shape(BlockFormat format) {
    switch (format) {
        case BlockFormat::q4_0: return {4, 0, 1, 32};
        case BlockFormat::q4_1: return {4, 0, 1, 64};
        case BlockFormat::q5_0: return {5, 0, 1, 32};
        case BlockFormat::q5_1: return {5, 0, 1, 64};
        case BlockFormat::q8_0: return {8, 0, 1, 32};
        case BlockFormat::q2_k: return {2, 64, 8, 32};
        case BlockFormat::q3_k: return {3, 32, 8, 32};
        case BlockFormat::q4_k: return {4, 64, 8, 32};
        case BlockFormat::q5_k: return {5, 64, 8, 32};
        case BlockFormat::q6_k: return {6, 32, 8, 32};
        case BlockFormat::iq4_nl: return {4, 0, 1, 32};
        case BlockFormat::iq4_xs: return {4, 32, 8, 16};
        case BlockFormat::mxfp4: return {4, 0, 1, 16};
        case BlockFormat::nvfp4: return {4, 0, 2, 32};
        default: return {0, 0, 1, 0};
    }
}

constexpr int64_t panels_of(int64_t rows) { return rows / kPanelRows + (rows % kPanelRows != 0); }
