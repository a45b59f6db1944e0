// Runs kernels.cu on the CPU, for machines without a GPU: what a kernel computes can be held against its plain twin there, how
// fast it is cannot. The threads of a block are fibers that take turns at each __syncthreads(); blocks run one after another.
//
// Standard input: the kernel's name and a newline; then as int32 the grid (3), the threads of a block, the bytes of shared memory,
// the numbers of floats of the result, of tensors, of ints, of floats; for each tensor its kind (0: float32, 1: int32) and count;
// then tensors, ints, floats. Standard output: the result. A read or write beyond a tensor ends the program (it is built with
// the address sanitizer), and so does a block whose threads do not all reach a __syncthreads(). Each launch is run twice, the
// threads of a block in their order and in the opposite one: a result that depends on it has a race. Threads that would meet in
// another order only are not seen.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>
#include <ucontext.h>

#define EMULATED
#define __global__
#define __device__
struct Index { int x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static std::vector<float> shared_memory;
#define DYNAMIC_SHARED(type, name) type *name = shared_memory.data()
static void wait_for_block();
#define __syncthreads() wait_for_block()

#include "kernels.cu"

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    long waits;
    bool over;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int current;
static bool backwards;

static void wait_for_block() {
    fibers[current].waits += 1;
    swapcontext(&fibers[current].context, &scheduler);
}

[[noreturn]] static void fail(const char *why) {
    std::fprintf(stderr, "%s\n", why);
    std::exit(1);
}

template <typename T> static T argument(void *place);
template <> int argument<int>(void *place) { return *static_cast<int *>(place); }
template <> float argument<float>(void *place) { return *static_cast<float *>(place); }
template <> float *argument<float *>(void *place) { return static_cast<float *>(place); }
template <> const float *argument<const float *>(void *place) { return static_cast<float *>(place); }
template <> const int *argument<const int *>(void *place) { return static_cast<int *>(place); }

static std::vector<void *> arguments;
template <typename... T, size_t... I> static void apply(void (*kernel)(T...), std::index_sequence<I...>) {
    if (sizeof...(T) != arguments.size()) fail("a kernel was given another number of arguments than it takes");
    kernel(argument<T>(arguments[I])...);
}
template <typename... T> static void apply(void (*kernel)(T...)) { apply(kernel, std::index_sequence_for<T...>{}); }

static std::string name;
static void body() {
    if (name == "group_norm") apply(group_norm);
    else if (name == "layer_norm") apply(layer_norm);
    else if (name == "geglu") apply(geglu);
    else if (name == "padded") apply(padded);
    else if (name == "terms") apply(terms);
    else if (name == "attention") apply(attention);
    else if (name == "attention_map") apply(attention_map);
    else fail("there is no kernel of this name");
    fibers[current].over = true;
    swapcontext(&fibers[current].context, &scheduler);
}

static void run_block() {
    // What was there before is not relied on.
    for (float &x : shared_memory) x = NAN;
    for (Fiber &fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.waits = 0;
        fiber.over = false;
        makecontext(&fiber.context, body, 0);
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (int turn = 0; turn < (int)fibers.size(); ++turn) {
            current = backwards ? (int)fibers.size() - 1 - turn : turn;
            Fiber &fiber = fibers[current];
            if (fiber.over) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fiber.context);
            alive = alive || !fiber.over;
        }
        for (Fiber &fiber : fibers)
            if (fiber.waits != fibers[0].waits || fiber.over != fibers[0].over) fail("not all threads of a block reached a __syncthreads()");
    }
}

template <typename T> static std::vector<T> numbers(size_t count) {
    std::vector<T> read(count);
    if (std::fread(read.data(), sizeof(T), count, stdin) != count) fail("the input ends too early");
    return read;
}

int main() {
    for (int letter; (letter = std::getchar()) != '\n';) {
        if (letter == EOF) fail("the input ends too early");
        name.push_back((char)letter);
    }
    std::vector<int32_t> head = numbers<int32_t>(9);
    gridDim = {head[0], head[1], head[2]};
    blockDim = {head[3], 1, 1};
    shared_memory.resize((size_t)head[4] / sizeof(float));
    std::vector<int32_t> kinds = numbers<int32_t>(2 * (size_t)head[6]);
    std::vector<std::vector<float>> tensors;
    std::vector<std::vector<int32_t>> indices;
    tensors.reserve((size_t)head[6]);
    indices.reserve((size_t)head[6]);
    std::vector<float> result((size_t)head[5], NAN);
    arguments.push_back(result.data());
    for (int i = 0; i < head[6]; ++i) {
        const size_t count = (size_t)kinds[2 * i + 1];
        if (kinds[2 * i] == 0) {
            tensors.push_back(numbers<float>(count));
            arguments.push_back(tensors.back().data());
        } else {
            indices.push_back(numbers<int32_t>(count));
            arguments.push_back(indices.back().data());
        }
    }
    std::vector<int32_t> ints = numbers<int32_t>((size_t)head[7]);
    for (int32_t &x : ints) arguments.push_back(&x);
    std::vector<float> floats = numbers<float>((size_t)head[8]);
    for (float &x : floats) arguments.push_back(&x);
    fibers.resize((size_t)blockDim.x);
    for (Fiber &fiber : fibers) fiber.stack.resize(64 << 10);
    std::vector<float> forwards;
    for (int turn = 0; turn < 2; ++turn) {
        backwards = turn == 1;
        if (backwards) forwards = result;
        for (float &x : result) x = NAN;
        for (int z = 0; z < gridDim.z; ++z)
            for (int y = 0; y < gridDim.y; ++y)
                for (int x = 0; x < gridDim.x; ++x) {
                    blockIdx = {x, y, z};
                    run_block();
                }
    }
    if (std::memcmp(forwards.data(), result.data(), result.size() * sizeof(float)) != 0) fail("the result depends on the order of threads");
    std::fwrite(result.data(), sizeof(float), result.size(), stdout);
    return 0;
}
