// The kernels for CUDA devices, compiled by NVRTC for the device at hand. Each has its twin in `../plain.rs`, which says what
// is computed; `calls.rs` says with which blocks and numbers they are launched. No header is included, so that nothing of the
// toolkit but NVRTC is needed where the program runs.
//
// Arguments: the result first, then tensors (float32, without gaps), then integers, then floats. A tensor that is left out is
// another one's address and an integer of 0. All that is summed by several threads is summed in an order that the shape of one
// image decides (law 6 of docs/method.md): each thread takes every blockDim.x-th element, then halves meet.
//
// `emulated.cpp` compiles this file for the CPU, where threads of a block take turns; so __syncthreads() is reached by all
// threads of a block or by none.

#ifndef EMULATED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

#define LOWEST (-3.402823466e38f)

// The sum over a block, for all of its threads. `shared` has a place for each thread; their number is a power of two.
static __device__ float block_sum(float x, float *shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    float sum = shared[0];
    __syncthreads();
    return sum;
}

// The largest of a block, for all of its threads.
static __device__ float block_max(float x, float *shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    float largest = shared[0];
    __syncthreads();
    return largest;
}

// Group normalisation, then SiLU if asked: x [B, C, pixels], weight and bias [C]. A block is a group of an image.
extern "C" __global__ void group_norm(float *out, const float *x, const float *weight, const float *bias,
                                      int channels, int pixels, int groups, int silu, float eps) {
    DYNAMIC_SHARED(float, shared);
    const int own = channels / groups;
    const int count = own * pixels;
    const long long start = (long long)blockIdx.x * count;
    const int first = (int)(blockIdx.x % groups) * own;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += x[start + i];
    const float mean = block_sum(sum, shared) / count;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float centred = x[start + i] - mean;
        squares += centred * centred;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / count + eps);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int channel = first + i / pixels;
        const float y = (x[start + i] - mean) * scale * weight[channel] + bias[channel];
        out[start + i] = silu ? y / (1.0f + expf(-y)) : y;
    }
}

// Layer normalisation of rows of `width`. A block is a row.
extern "C" __global__ void layer_norm(float *out, const float *x, const float *weight, const float *bias,
                                      int width, float eps) {
    DYNAMIC_SHARED(float, shared);
    const long long start = (long long)blockIdx.x * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[start + i];
    const float mean = block_sum(sum, shared) / width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float centred = x[start + i] - mean;
        squares += centred * centred;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[start + i] = (x[start + i] - mean) * scale * weight[i] + bias[i];
}

// h * gelu(g) of rows [h, g] of `width` numbers each. A thread is a number of the result.
extern "C" __global__ void geglu(float *out, const float *x, int width, int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const long long row = (long long)(i / width) * 2 * width + i % width;
        const float g = x[row + width];
        out[i] = x[row] * 0.5f * g * (1.0f + erff(g * 0.70710678118654752f));
    }
}

// What a convolution reads: planes [B * C, height, width] enlarged to h x w by the nearest pixel, with zeros around:
// `top` rows above, `left` columns before, up to rows x columns in all.
extern "C" __global__ void padded(float *out, const float *x, int height, int width, int h, int w,
                                  int top, int left, int rows, int columns, int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const int column = i % columns - left;
        const int row = i / columns % rows - top;
        const long long plane = i / columns / rows;
        const bool inside = row >= 0 && row < h && column >= 0 && column < w;
        // The index is floor(i * in / out), in whole numbers.
        out[i] = inside ? x[(plane * height + (long long)row * height / h) * width + (long long)column * width / w] : 0.0f;
    }
}

// What is added to a product: y [B, outputs, pixels] of a convolution, or [rows, outputs] of a matrix with `pixels` 1.
// bias [outputs], image [B, outputs], residual as y.
extern "C" __global__ void terms(float *out, const float *y, const float *bias, const float *image, const float *residual,
                                 int outputs, int pixels, int has_bias, int has_image, int has_residual, int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        const int row = i / pixels;
        float sum = y[i];
        if (has_bias) sum += bias[row % outputs];
        if (has_image) sum += image[row];
        if (has_residual) sum += residual[i];
        out[i] = sum;
    }
}

// The queries of a block of `attention`, and the most columns of a head that a thread sums.
#define QUERIES 16
#define COLUMNS 4

// softmax(q k^T scale) v of a head, 16 queries a block, by the running maximum and sum of Milakov and Gimelshein (2018): q [B, n, C],
// k and v [1 or B, m, C]. blockIdx: block of queries, head, image. `tile` keys are in shared memory at a time.
// With `chosen` the keys that take part are numbers[starts[source]] .. numbers[starts[source + 1]].
// side 1: the result times mask [1 or B, n]; side 2: `before`, which side 1 gave, plus the result times 1 - mask. A block in which no query has a part
// reads no key.
extern "C" __global__ void attention(float *out, const float *q, const float *k, const float *v, const int *starts,
                                     const int *numbers, const float *mask, const float *before, int n, int m, int heads, int size, int tile,
                                     int shared_keys, int chosen, int side, int shared_mask, float scale) {
    DYNAMIC_SHARED(float, shared);
    const int first = blockIdx.x * QUERIES, head = blockIdx.y, image = blockIdx.z;
    const int width = heads * size, queries = n - first < QUERIES ? n - first : QUERIES;
    const int source = shared_keys ? 0 : image, threads = blockDim.x, thread = threadIdx.x;
    // Rows of keys are one number apart from a power of two: threads that read one column of several keys read other banks.
    float *own = shared;                          // [QUERIES, size]
    float *keys = own + QUERIES * size;           // [tile, size + 1]
    float *values = keys + tile * (size + 1);     // [tile, size]
    float *scores = values + tile * size;         // [QUERIES, tile]
    float *largest = scores + QUERIES * tile;     // [QUERIES]
    float *sums = largest + QUERIES;              // [QUERIES]
    float *shrink = sums + QUERIES;               // [QUERIES]
    float *part = shrink + QUERIES;               // [QUERIES]
    if (thread < QUERIES) {
        largest[thread] = LOWEST;
        sums[thread] = 0.0f;
        float weight = 1.0f;
        if (side != 0 && thread < queries) {
            weight = mask[(long long)(shared_mask ? 0 : image) * n + first + thread];
            if (side == 2) weight = 1.0f - weight;
        }
        part[thread] = thread < queries ? weight : 0.0f;
    }
    for (int i = thread; i < queries * size; i += threads)
        own[i] = q[((long long)image * n + first + i / size) * width + head * size + i % size];
    __syncthreads();
    bool any = false;
    for (int query = 0; query < queries; ++query) any = any || part[query] != 0.0f;
    float sum[COLUMNS][QUERIES];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
        for (int query = 0; query < QUERIES; ++query) sum[j][query] = 0.0f;
    const int begin = chosen ? starts[source] : 0;
    const int end = any ? (chosen ? starts[source + 1] : m) : begin;
    for (int at = begin; at < end; at += tile) {
        const int there = end - at < tile ? end - at : tile;
        for (int i = thread; i < there * size; i += threads) {
            const int key = chosen ? numbers[at + i / size] : at + i / size;
            const long long from = ((long long)source * m + key) * width + head * size + i % size;
            keys[i / size * (size + 1) + i % size] = k[from];
            values[i] = v[from];
        }
        __syncthreads();
        for (int i = thread; i < queries * there; i += threads) {
            const int query = i / there, key = i % there;
            float dot = 0.0f;
            for (int c = 0; c < size; ++c) dot += own[query * size + c] * keys[key * (size + 1) + c];
            scores[query * tile + key] = dot * scale;
        }
        __syncthreads();
        if (thread < queries) {
            float most = largest[thread];
            for (int key = 0; key < there; ++key) most = fmaxf(most, scores[thread * tile + key]);
            const float by = expf(largest[thread] - most);
            float total = sums[thread] * by;
            for (int key = 0; key < there; ++key) {
                const float weight = expf(scores[thread * tile + key] - most);
                scores[thread * tile + key] = weight;
                total += weight;
            }
            largest[thread] = most;
            sums[thread] = total;
            shrink[thread] = by;
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const int column = thread + j * threads;
            if (column < size) {
#pragma unroll
                for (int query = 0; query < QUERIES; ++query) {
                    if (query < queries) {
                        float total = sum[j][query] * shrink[query];
                        for (int key = 0; key < there; ++key) total += scores[query * tile + key] * values[key * size + column];
                        sum[j][query] = total;
                    }
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        const int column = thread + j * threads;
        if (column < size) {
#pragma unroll
            for (int query = 0; query < QUERIES; ++query) {
                if (query < queries) {
                    const long long to = ((long long)image * n + first + query) * width + head * size + column;
                    const float mean = any ? sum[j][query] / sums[query] : 0.0f;
                    if (side == 0) out[to] = mean;
                    else if (side == 1) out[to] = part[query] * mean;
                    else out[to] = before[to] + part[query] * mean;
                }
            }
        }
    }
}

// The mean over heads of softmax(q k^T scale): out [B, n, m]. blockIdx: query, image; shared memory has a row of scores.
extern "C" __global__ void attention_map(float *out, const float *q, const float *k, int n, int m, int heads, int size,
                                         int shared_keys, float scale) {
    DYNAMIC_SHARED(float, shared);
    float *scores = shared + blockDim.x;
    const int image = blockIdx.y, width = heads * size;
    const long long row = (long long)image * n + blockIdx.x;
    const float *keys = k + (shared_keys ? 0 : (long long)image * m * width);
    for (int head = 0; head < heads; ++head) {
        const float *query = q + row * width + head * size;
        float most = LOWEST;
        for (int key = threadIdx.x; key < m; key += blockDim.x) {
            float dot = 0.0f;
            for (int c = 0; c < size; ++c) dot += query[c] * keys[(long long)key * width + head * size + c];
            scores[key] = dot * scale;
            most = fmaxf(most, scores[key]);
        }
        most = block_max(most, shared);
        float sum = 0.0f;
        for (int key = threadIdx.x; key < m; key += blockDim.x) {
            scores[key] = expf(scores[key] - most);
            sum += scores[key];
        }
        sum = block_sum(sum, shared);
        for (int key = threadIdx.x; key < m; key += blockDim.x) {
            const float weight = scores[key] / sum / heads;
            out[row * m + key] = head == 0 ? weight : out[row * m + key] + weight;
        }
    }
}
