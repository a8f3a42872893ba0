// How a product is cut into tasks.

// Tiles of the weight's rows times blocks of rows of x.
struct LinearTiles {
    void (*run)(const LinearTiles&, int64_t index);  // does one task
    const LinearCall* call;
    const void* x;  // the activations as `run` wants them
    int64_t tile_rows, blocks, block_inputs, tasks;
    int64_t block_rows;  // of a tile that are gone through together
};

// So many tasks for each thread end at about the same time.
constexpr int64_t kTasksOfThread = 8;

// Products of one parallel_for; a larger group takes several.
constexpr int kMostProducts = 64;
